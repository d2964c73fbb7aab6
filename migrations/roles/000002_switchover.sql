-- Rights for what came after 000001, in the same manner: optional, safe to run again and again, grants only what is installed here.

do $$
declare
  wish record;
  routine regprocedure;
begin
  for wish in
    select w.role, w.rights, w.name
    from (values
      ('turnout_relay', 'select', 'switchover_check'),
      ('turnout_relay', 'select', 'switchover_history'),
      ('turnout_consumer', 'select', 'watched_table'),
      ('turnout_reader', 'select', 'published_id'),
      ('turnout_operator', 'select', 'published_id'),
      ('turnout_reader', 'select', 'spare_number'),
      ('turnout_operator', 'select', 'spare_number'),
      ('turnout_reader', 'select', 'shadow_call'),
      ('turnout_reader', 'select', 'shadow_arrival'),
      ('turnout_reader', 'select', 'shadow_count'),
      ('turnout_reader', 'select', 'shadow_variant'),
      ('turnout_reader', 'select', 'shadow_mismatch'),
      ('turnout_reader', 'select', 'shadow_example'),
      ('turnout_reader', 'select', 'shadow_waiver'),
      ('turnout_reader', 'select', 'watched_table'),
      ('turnout_operator', 'select', 'shadow_call'),
      ('turnout_operator', 'select', 'shadow_arrival'),
      ('turnout_operator', 'select', 'shadow_count'),
      ('turnout_operator', 'select', 'shadow_variant'),
      ('turnout_operator', 'select', 'shadow_mismatch'),
      ('turnout_operator', 'select', 'shadow_example'),
      ('turnout_operator', 'select', 'shadow_waiver'),
      ('turnout_operator', 'select', 'watched_table'),
      ('turnout_publisher', 'select, insert', 'proxied_call')
    ) as w (role, rights, name)
    where pg_catalog.to_regclass('turnout.' || w.name) is not null
  loop
    execute pg_catalog.format('grant %s on turnout.%I to %I', wish.rights, wish.name, wish.role);
  end loop;

  for wish in
    select w.role, w.name
    from (values
      ('turnout_publisher', 'publish_once'),
      ('turnout_relay', 'delete_old_published_ids'),
      ('turnout_consumer', 'note_spare_number'),
      ('turnout_consumer', 'hold_number'),
      ('turnout_operator', 'pass_number'),
      ('turnout_publisher', 'await_replies'),
      ('turnout_publisher', 'record_reply'),
      ('turnout_publisher', 'reply_status'),
      ('turnout_publisher', 'settle_call'),
      ('turnout_publisher', 'forget_proxied_calls'),
      ('turnout_relay', 'settle_call'),
      ('turnout_relay', 'delete_old_replies'),
      ('turnout_consumer', 'begin_call'),
      ('turnout_consumer', 'begin_event'),
      ('turnout_consumer', 'next_held'),
      ('turnout_consumer', 'finish_effect'),
      ('turnout_consumer', 'park_effect'),
      ('turnout_consumer', 'record_shadow'),
      ('turnout_consumer', 'record_shadow_arrivals'),
      ('turnout_consumer', 'delete_old_shadow'),
      ('turnout_operator', 'waive_mismatch'),
      ('turnout_operator', 'watch_table'),
      -- What a watched table calls: who makes the trigger has to be allowed to.
      ('turnout_operator', 'capture_write'),
      ('turnout_operator', 'unwatch_table'),
      ('turnout_operator', 'record_check'),
      -- Made anew, with one parameter more, since 000001 granted them.
      ('turnout_operator', 'set_stage'),
      ('turnout_operator', 'register_switchover'),
      ('turnout_operator', 'redrive'),
      ('turnout_relay', 'step_back'),
      ('turnout_consumer', 'record_callers'),
      ('turnout_reader', 'recent_outcomes'),
      ('turnout_operator', 'recent_outcomes'),
      ('turnout_operator', 'see_alarms')
    ) as w (role, name)
  loop
    for routine in
      select p.oid::regprocedure from pg_catalog.pg_proc p
      where p.pronamespace = 'turnout'::regnamespace and p.proname = wish.name
    loop
      execute pg_catalog.format('grant execute on function %s to %I', routine, wish.role);
    end loop;
  end loop;
end
$$;
