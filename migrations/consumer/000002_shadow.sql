-- Stage shadow, for the database of a consuming service: whether the event path does what the call did.
--
--   turnout.shadow_call, turnout.shadow_arrival   delivery: one row when the call had its effect, one when its event came
--   turnout.shadow_count                          decision: how many comparisons, and how they ended
--   turnout.shadow_mismatch, …_example            decision: what differed, grouped, with examples that are masked
--   turnout.shadow_waiver                         groups that don't count until a date
--
-- Nothing here is written in the transaction of an effect: a comparison must not make a call wait or fail.

-- Calls stamped in stage shadow that had their effect here, and were in the sample.
create table turnout.shadow_call (
  consumer    text not null,
  effect_key  text not null,
  event_type  text not null,
  called_at   timestamptz not null,
  -- Where the hash of the effect key lies, 0 to 9,999, and below what it was recorded: the report takes what both sides recorded.
  bucket      integer not null,
  sample      integer not null,
  primary key (consumer, effect_key)
);

create index shadow_call_time on turnout.shadow_call (consumer, called_at);

-- The Kafka copies of such events, when the consumer first saw them.
create table turnout.shadow_arrival (
  consumer    text not null,
  effect_key  text not null,
  event_type  text not null,
  source      text not null,
  topic       text not null,
  partition   integer not null,
  "offset"    bigint not null,
  -- For events whose order counts: their key, and their place among those of it (key number, or place in the outbox).
  key         text,
  generation  integer,
  place       bigint,
  epoch       bigint not null,
  occurred_at timestamptz not null,
  arrived_at  timestamptz not null,
  -- Why it could not have had its effect, if so: a code, and for data the path.
  problem     text,
  bucket      integer not null,
  sample      integer not null,
  primary key (consumer, effect_key)
);

create index shadow_arrival_time on turnout.shadow_arrival (consumer, arrived_at);

create table turnout.shadow_count (
  consumer    text not null,
  event_type  text not null,
  variant     text not null,
  -- What the service calls the version of its code, if it says so.
  release     text not null,
  minute      timestamptz not null,
  matched     bigint not null default 0,
  mismatched  bigint not null default 0,
  failed      bigint not null default 0,
  skipped     bigint not null default 0,
  primary key (consumer, event_type, variant, release, minute)
) with (fillfactor = 70);

create index shadow_count_time on turnout.shadow_count (consumer, minute);

-- The variants that the consumer's team wants to see compared before it believes the result.
create table turnout.shadow_variant (
  consumer text not null,
  variant  text not null,
  primary key (consumer, variant)
);

-- One row a group, event type and minute. A fingerprint stands for the kind and the places of a difference, never for values.
create table turnout.shadow_mismatch (
  consumer    text not null,
  fingerprint text not null,
  minute      timestamptz not null,
  release     text not null,
  kind        text not null check (kind in ('writes', 'answer', 'effects', 'error', 'several')),
  event_type  text not null,
  paths       jsonb not null,
  count       bigint not null,
  first_at    timestamptz not null,
  last_at     timestamptz not null,
  primary key (consumer, fingerprint, minute, release, event_type)
) with (fillfactor = 70);

create index shadow_mismatch_time on turnout.shadow_mismatch (consumer, minute);

-- A few of each group: both sides, masked.
create table turnout.shadow_example (
  id          bigint generated always as identity primary key,
  consumer    text not null,
  fingerprint text not null,
  effect_key  text not null,
  release     text not null,
  expected    jsonb not null,
  actual      jsonb not null,
  at          timestamptz not null
);

create index shadow_example_group on turnout.shadow_example (consumer, fingerprint, id);
create index shadow_example_time on turnout.shadow_example (consumer, at);

create table turnout.shadow_waiver (
  consumer    text not null,
  fingerprint text not null,
  until       timestamptz not null,
  reason      text not null,
  by          text not null default session_user,
  at          timestamptz not null default clock_timestamp(),
  primary key (consumer, fingerprint)
);

-- Writes what an endpoint has gathered: {"calls", "counts", "mismatches", "variants"}. `ago` is how many milliseconds ago, since
-- the clocks of processes differ. Rows are taken in one order, lest two endpoints wait for each other in a circle.
create function turnout.record_shadow(consumer text, release text, gathered jsonb)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '2s'
as $$
#variable_conflict use_column
begin
  insert into turnout.shadow_call (consumer, effect_key, event_type, called_at, bucket, sample)
    select record_shadow.consumer, c."effectKey", c."eventType", clock_timestamp() - make_interval(secs => c.ago / 1000.0), c.bucket, c.sample
      from jsonb_to_recordset(record_shadow.gathered -> 'calls')
           as c ("effectKey" text, "eventType" text, ago double precision, bucket integer, sample integer)
     order by c."effectKey"
    on conflict do nothing;
  insert into turnout.shadow_count as n (consumer, event_type, variant, release, minute, matched, mismatched, failed, skipped)
    select record_shadow.consumer, c."eventType", c.variant, record_shadow.release, date_trunc('minute', clock_timestamp()),
           c.matched, c.mismatched, c.failed, c.skipped
      from jsonb_to_recordset(record_shadow.gathered -> 'counts')
           as c ("eventType" text, variant text, matched bigint, mismatched bigint, failed bigint, skipped bigint)
     order by c."eventType", c.variant
    on conflict (consumer, event_type, variant, release, minute) do update
      set matched = n.matched + excluded.matched, mismatched = n.mismatched + excluded.mismatched,
          failed = n.failed + excluded.failed, skipped = n.skipped + excluded.skipped;
  insert into turnout.shadow_mismatch as m (consumer, fingerprint, minute, release, kind, event_type, paths, count, first_at, last_at)
    select record_shadow.consumer, g.fingerprint, date_trunc('minute', clock_timestamp()), record_shadow.release, g.kind, g."eventType",
           g.paths, g.count, clock_timestamp(), clock_timestamp()
      from jsonb_to_recordset(record_shadow.gathered -> 'mismatches')
           as g (fingerprint text, kind text, "eventType" text, paths jsonb, count bigint)
     order by g.fingerprint, g."eventType"
    on conflict (consumer, fingerprint, minute, release, event_type) do update set count = m.count + excluded.count, last_at = excluded.last_at;
  -- The newest five of a group stay.
  insert into turnout.shadow_example (consumer, fingerprint, effect_key, release, expected, actual, at)
    select record_shadow.consumer, g.fingerprint, g."effectKey", record_shadow.release, g.expected, g.actual, clock_timestamp()
      from jsonb_to_recordset(record_shadow.gathered -> 'mismatches') as g (fingerprint text, "effectKey" text, expected jsonb, actual jsonb);
  delete from turnout.shadow_example e
    using (select x.id, row_number() over (partition by x.fingerprint order by x.id desc) as nth
             from turnout.shadow_example x
            where x.consumer = record_shadow.consumer
              and x.fingerprint in (select g ->> 'fingerprint' from jsonb_array_elements(record_shadow.gathered -> 'mismatches') g)) old
    where e.id = old.id and old.nth > 5;
  if record_shadow.gathered ? 'variants' then
    delete from turnout.shadow_variant v
      where v.consumer = record_shadow.consumer and not (record_shadow.gathered -> 'variants') ? v.variant;
    insert into turnout.shadow_variant (consumer, variant)
      select record_shadow.consumer, v from jsonb_array_elements_text(record_shadow.gathered -> 'variants') v order by v
      on conflict do nothing;
  end if;
end
$$;

-- Writes that events stamped in stage shadow have come. A copy that comes again changes nothing.
create function turnout.record_shadow_arrivals(consumer text, arrivals jsonb)
returns void
language sql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '2s'
as $$
  insert into turnout.shadow_arrival (consumer, effect_key, event_type, source, topic, partition, "offset", key, generation, place, epoch,
                                      occurred_at, arrived_at, problem, bucket, sample)
  select record_shadow_arrivals.consumer, a."effectKey", a."eventType", a.source, a.topic, a.partition, a."offset", a.key, a.generation,
         a.place, a.epoch, a."occurredAt", clock_timestamp(), a.problem, a.bucket, a.sample
    from jsonb_to_recordset(record_shadow_arrivals.arrivals)
         as a ("effectKey" text, "eventType" text, source text, topic text, partition integer, "offset" bigint, key text, generation integer,
               place bigint, epoch bigint, "occurredAt" timestamptz, problem text, bucket integer, sample integer)
  on conflict do nothing;
$$;

-- A group doesn't count as mismatch until a date. Changing one's mind is another call; a date in the past ends it.
create function turnout.waive_mismatch(consumer text, fingerprint text, until timestamptz, reason text)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
begin
  if coalesce(trim(waive_mismatch.reason), '') = '' then
    raise exception 'To waive a mismatch needs a reason.' using errcode = 'TU012';
  end if;
  perform from turnout.shadow_mismatch m
    where m.consumer = waive_mismatch.consumer and m.fingerprint = waive_mismatch.fingerprint limit 1;
  if not found then
    raise exception 'The shadow of % has no group %.', waive_mismatch.consumer, waive_mismatch.fingerprint
      using errcode = 'TU025', detail = json_build_object('consumer', waive_mismatch.consumer, 'fingerprint', waive_mismatch.fingerprint)::text;
  end if;
  insert into turnout.shadow_waiver (consumer, fingerprint, until, reason, by)
    values (waive_mismatch.consumer, waive_mismatch.fingerprint, waive_mismatch.until, waive_mismatch.reason, session_user)
    on conflict (consumer, fingerprint) do update
      set until = excluded.until, reason = excluded.reason, by = excluded.by, at = clock_timestamp();
end
$$;

-- Removes what is older than its time: what was delivered after `deliveries`, the rest after `decisions`; of each table `most` rows a
-- call, so that nobody waits. Returns how many rows went; the consumer's process calls it until it is 0.
create function turnout.delete_old_shadow(consumer text, deliveries interval, decisions interval, most integer)
returns integer
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
  gone integer;
  total integer := 0;
begin
  delete from turnout.shadow_call d where d.ctid = any (array(
    select c.ctid from turnout.shadow_call c
     where c.consumer = delete_old_shadow.consumer and c.called_at < clock_timestamp() - delete_old_shadow.deliveries
     order by c.called_at limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  total := total + gone;
  delete from turnout.shadow_arrival d where d.ctid = any (array(
    select a.ctid from turnout.shadow_arrival a
     where a.consumer = delete_old_shadow.consumer and a.arrived_at < clock_timestamp() - delete_old_shadow.deliveries
     order by a.arrived_at limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  total := total + gone;
  delete from turnout.shadow_count d where d.ctid = any (array(
    select c.ctid from turnout.shadow_count c
     where c.consumer = delete_old_shadow.consumer and c.minute < clock_timestamp() - delete_old_shadow.decisions
     order by c.minute limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  total := total + gone;
  delete from turnout.shadow_mismatch d where d.ctid = any (array(
    select m.ctid from turnout.shadow_mismatch m
     where m.consumer = delete_old_shadow.consumer and m.minute < clock_timestamp() - delete_old_shadow.decisions
     order by m.minute limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  total := total + gone;
  delete from turnout.shadow_example d where d.ctid = any (array(
    select e.ctid from turnout.shadow_example e
     where e.consumer = delete_old_shadow.consumer and e.at < clock_timestamp() - delete_old_shadow.decisions
     order by e.at limit delete_old_shadow.most for update skip locked));
  get diagnostics gone = row_count;
  return total + gone;
end
$$;

-- What a handler writes, whatever SQL it uses: a trigger appends each row to a setting of the transaction. Its argument is the
-- table that was watched (a partition has another name). Switched on by `turnout.capture`, which says how many bytes at
-- most; what is more is not kept, and `turnout.captured` says 'too large'. It never fails: it is in the way of real writes too.
create function turnout.capture_write()
returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  before text := current_setting('turnout.captured', true);
  line text;
begin
  if before in ('too large', 'failed') then
    return null;
  end if;
  begin
    line := jsonb_build_object('table', tg_argv[0], 'op', lower(tg_op),
                               'old', case when tg_op in ('UPDATE', 'DELETE') then to_jsonb(old) end,
                               'new', case when tg_op in ('INSERT', 'UPDATE') then to_jsonb(new) end)::text;
    if length(coalesce(before, '')) + length(line) > current_setting('turnout.capture')::integer then
      perform set_config('turnout.captured', 'too large', true);
    else
      perform set_config('turnout.captured', coalesce(before, '') || line || e'\n', true);
    end if;
  exception when others then
    perform set_config('turnout.captured', 'failed', true);
  end;
  return null;
end
$$;

-- Lets comparisons see what is written to a table. With the rights of who calls it, who has to own the table. Safe to repeat.
-- Costs the look at a setting per row while nothing is compared.
create function turnout.watch_table(watched regclass)
returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  relation record;
  name text;
begin
  select c.relname, c.relkind, n.nspname into relation
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = watched;
  if relation.relkind not in ('r', 'p') or relation.nspname in ('turnout', 'pg_catalog', 'information_schema') then
    raise exception '% can''t be watched: it is no table of the service''s own.', watched
      using errcode = 'TU026', detail = json_build_object('table', watched::text)::text;
  end if;
  name := case when relation.nspname = 'public' then relation.relname else relation.nspname || '.' || relation.relname end;
  execute format('create or replace trigger turnout_capture after insert or update or delete on %s for each row '
                 'when (current_setting(''turnout.capture'', true) <> '''') execute function turnout.capture_write(%L)', watched, name);
  if relation.relkind = 'r' then
    execute format('create or replace trigger turnout_capture_all after truncate on %s for each statement '
                   'when (current_setting(''turnout.capture'', true) <> '''') execute function turnout.capture_write(%L)', watched, name);
  end if;
end
$$;

create function turnout.unwatch_table(watched regclass)
returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('drop trigger if exists turnout_capture on %s', watched);
  execute format('drop trigger if exists turnout_capture_all on %s', watched);
end
$$;

-- The watched tables: their key, and the columns whose value the database makes up (identity, or a default that isn't the same each
-- time), which therefore differ between two writes of the same.
create view turnout.watched_table as
select t.tgrelid::regclass as watched,
       convert_from(rtrim(t.tgargs, '\x00'), 'UTF8') as name,
       coalesce((select json_agg(a.attname order by k.nth)
                   from pg_index i cross join lateral unnest(i.indkey::int2[]) with ordinality as k (attnum, nth)
                   join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
                  where i.indrelid = t.tgrelid and i.indisprimary), '[]'::json) as key_columns,
       coalesce((select json_agg(a.attname order by a.attnum)
                   from pg_attribute a
                   left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
                  where a.attrelid = t.tgrelid and a.attnum > 0 and not a.attisdropped
                    and (a.attidentity <> ''
                         or (a.attgenerated = ''
                             and (d.adbin::text like '%SQLVALUEFUNCTION%'
                                  or exists (select from regexp_matches(d.adbin::text, 'funcid (\d+)', 'g') f
                                               join pg_proc p on p.oid = f[1]::oid
                                              where p.provolatile <> 'i'))))), '[]'::json) as generated_columns,
       -- What refers to another watched table's columns: their made-up values come back there.
       coalesce((select json_agg(json_build_object('column', a.attname, 'table', convert_from(rtrim(o.tgargs, '\x00'), 'UTF8'), 'refers', r.attname))
                   from pg_constraint c
                   join pg_trigger o on o.tgrelid = c.confrelid and o.tgname = 'turnout_capture'
                   cross join lateral unnest(c.conkey, c.confkey) as k (own, other)
                   join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.own
                   join pg_attribute r on r.attrelid = c.confrelid and r.attnum = k.other
                  where c.conrelid = t.tgrelid and c.contype = 'f'), '[]'::json) as referring_columns
  from pg_trigger t
  join pg_class w on w.oid = t.tgrelid
 where t.tgname = 'turnout_capture' and not w.relispartition;

revoke all on turnout.shadow_call, turnout.shadow_arrival, turnout.shadow_count, turnout.shadow_variant, turnout.shadow_mismatch,
  turnout.shadow_example, turnout.shadow_waiver, turnout.watched_table from public;
revoke all on function turnout.record_shadow(text, text, jsonb), turnout.record_shadow_arrivals(text, jsonb),
  turnout.waive_mismatch(text, text, timestamptz, text), turnout.delete_old_shadow(text, interval, interval, integer),
  turnout.capture_write(), turnout.watch_table(regclass), turnout.unwatch_table(regclass) from public;
