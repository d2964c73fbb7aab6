-- Roles for those who don't let every service own the tables. Optional, and safe to run again and again: after a set of
-- migrations was added, and in every database of a cluster (roles belong to the cluster, rights to a database).
-- Needs CREATEROLE where the roles don't exist yet, and the owner of the schema for the grants.
-- Give them to your own: grant turnout_publisher to orders_service;
--
--   turnout_publisher  publishes, and makes the calls that are owed
--   turnout_relay      runs `turnout run`: relay, sweeper, partitions
--   turnout_consumer   runs a consumer or a wrapped endpoint
--   turnout_operator   registers events and switchovers, changes stages, lets halted keys go on
--   turnout_reader     looks

do $$
declare
  role text;
begin
  foreach role in array array['turnout_publisher', 'turnout_relay', 'turnout_consumer', 'turnout_operator', 'turnout_reader'] loop
    begin
      if not exists (select from pg_catalog.pg_roles r where r.rolname = role) then
        execute pg_catalog.format('create role %I nologin', role);
      end if;
    exception
      -- Another database of the cluster is doing the same right now.
      when duplicate_object or unique_violation then null;
    end;
  end loop;
end
$$;

grant usage on schema turnout to turnout_publisher, turnout_relay, turnout_consumer, turnout_operator, turnout_reader;

do $$
declare
  wish record;
  routine regprocedure;
begin
  -- What of it is installed here.
  for wish in
    select w.role, w.rights, w.name
    from (values
      ('turnout_publisher', 'select', 'switchover'),
      ('turnout_publisher', 'select, update, delete', 'rpc_delivery'),
      ('turnout_relay', 'select', 'source'),
      ('turnout_relay', 'select', 'topic'),
      ('turnout_relay', 'select', 'event_type'),
      ('turnout_relay', 'select', 'outbox'),
      ('turnout_relay', 'select, insert', 'relay_tick'),
      ('turnout_relay', 'select, insert, update', 'relay_shard'),
      ('turnout_relay', 'select', 'switchover'),
      ('turnout_relay', 'select, update, delete', 'rpc_delivery'),
      ('turnout_consumer', 'select, insert, update', 'assignment'),
      ('turnout_consumer', 'select, insert, update', 'position'),
      ('turnout_consumer', 'select, insert, update', 'consumed_sequence'),
      ('turnout_consumer', 'select, insert', 'alarm'),
      ('turnout_consumer', 'select', 'inbox'),
      ('turnout_consumer', 'select', 'gate'),
      ('turnout_consumer', 'select, update, delete', 'held')
    ) as w (role, rights, name)
    where pg_catalog.to_regclass('turnout.' || w.name) is not null
    union all
    select r.role, 'select', c.relname
    from pg_catalog.pg_class c
    cross join (values ('turnout_reader'), ('turnout_operator')) as r (role)
    where c.relnamespace = 'turnout'::regnamespace and c.relkind in ('r', 'p', 'v') and not c.relispartition
    union all
    -- Each of them looks whether the migrations it needs are there.
    select r.role, 'select', 'migration'
    from (values ('turnout_publisher'), ('turnout_relay'), ('turnout_consumer')) as r (role)
    where pg_catalog.to_regclass('turnout.migration') is not null
  loop
    execute pg_catalog.format('grant %s on turnout.%I to %I', wish.rights, wish.name, wish.role);
  end loop;

  for wish in
    select w.role, w.name
    from (values
      ('turnout_publisher', 'publish'),
      ('turnout_publisher', 'publish_events'),
      ('turnout_publisher', 'lock_keys'),
      ('turnout_publisher', 'missing_events'),
      ('turnout_relay', 'missing_events'),
      ('turnout_relay', 'make_outbox_partitions'),
      ('turnout_relay', 'closed_outbox_partitions'),
      ('turnout_relay', 'empty_outbox_partition'),
      ('turnout_relay', 'drop_empty_outbox_partitions'),
      ('turnout_relay', 'delete_old_ticks'),
      ('turnout_relay', 'delete_old_stamps'),
      ('turnout_consumer', 'make_inbox_partition'),
      ('turnout_consumer', 'enter_inbox'),
      ('turnout_consumer', 'record_outcome'),
      ('turnout_consumer', 'hold_event'),
      ('turnout_consumer', 'halt_key'),
      ('turnout_operator', 'register_events'),
      ('turnout_operator', 'register_switchover'),
      ('turnout_operator', 'record_since'),
      ('turnout_operator', 'undeclared_publishers'),
      ('turnout_reader', 'undeclared_publishers'),
      ('turnout_operator', 'set_stage'),
      ('turnout_operator', 'rebase_relay'),
      ('turnout_operator', 'resume_key'),
      ('turnout_operator', 'accept_repeat'),
      ('turnout_operator', 'retry_parked'),
      ('turnout_operator', 'drop_inbox_partitions'),
      ('turnout_operator', 'skip_parked')
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
