-- The inbox, for the database of a consuming service: it lets an effect happen once, whichever path brought it.

create schema if not exists turnout;

-- Who works a partition for a consumer. Every transaction takes a shared lock on its row and checks the epoch;
-- a new owner counts the epoch up, so a process that was paused can't write any more.
create table turnout.assignment (
  consumer    text not null,
  topic       text not null,
  partition   integer not null,
  epoch       bigint not null default 0,
  owner       text,
  assigned_at timestamptz,
  -- The event that its owners began with, how many began with it and never told how it ended (one that ends the process
  -- is found by that), and how often its handler has failed.
  begun_offset bigint,
  begun       integer not null default 0,
  failed      integer not null default 0,
  primary key (consumer, topic, partition)
) with (fillfactor = 70);

-- The group's position lives here, not in Kafka: it moves in the transaction of the effect.
create table turnout.position (
  consumer    text not null,
  topic       text not null,
  partition   integer not null,
  next_offset bigint not null,
  -- Where the consumer started: nothing below is ever applied.
  since       bigint not null,
  updated_at  timestamptz not null default clock_timestamp(),
  primary key (consumer, topic, partition)
) with (fillfactor = 50);

-- The sequence raises the alarm: dense per (source, generation, topic, partition), so a hole is a loss.
create table turnout.consumed_sequence (
  consumer   text not null,
  topic      text not null,
  partition  integer not null,
  source     text not null,
  generation integer not null,
  base       bigint not null, -- the first one seen
  last       bigint not null,
  primary key (consumer, topic, partition, source)
) with (fillfactor = 50);

-- Alarms about what should never happen, kept until someone has looked.
create table turnout.alarm (
  id         bigint generated always as identity primary key,
  consumer   text not null,
  -- 'uncertain': a detached handler was begun and its outcome is not known; it was run again.
  kind       text not null check (kind in ('sequence-hole', 'unknown-repeat', 'skipped-old', 'halted', 'uncertain')),
  detail     jsonb not null,
  at         timestamptz not null default clock_timestamp()
);

-- One row an effect. Partitioned by the event's own time, which is the same on both paths, so that the primary key
-- finds a repeat wherever it comes from, and old rows leave by dropping a partition.
create table turnout.inbox (
  consumer     text not null,
  effect_key   text not null,
  occurred_at  timestamptz(3) not null,
  event_id     uuid not null,
  event_type   text not null,
  source       text not null,
  topic        text,
  key          text,
  generation   integer,
  number       bigint,
  path         text not null check (path in ('rpc', 'event')),
  -- 'running' is only for detached handlers and queued work: an intent, written before the effect. With a reason it is one
  -- that has failed, and is known to run no more.
  outcome      text not null check (outcome in ('running', 'queued', 'applied', 'rejected', 'skipped', 'dead')),
  -- SHA-256 of the request body: the same key with another body is refused (422).
  request_hash text,
  -- {"status", "headers", "body"} of the first answer, for a repeat of the call.
  answer       jsonb,
  reason       text,
  attempts     integer not null default 1,
  finished_at  timestamptz not null default clock_timestamp(),
  primary key (consumer, effect_key, occurred_at)
) partition by range (occurred_at);

-- Few rows: intents only. drop_inbox_partitions looks here.
create index inbox_intent on turnout.inbox (consumer) where outcome in ('running', 'queued');

-- Makes the partition for a point in time (weeks, UTC), beside the table and attached, so that nobody waits.
create function turnout.make_inbox_partition(at timestamptz)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
declare
  lower timestamptz := date_trunc('week', at, 'UTC');
  upper timestamptz := date_trunc('week', at, 'UTC') + interval '7 days';
  name text := 'inbox_' || to_char(date_trunc('week', at, 'UTC') at time zone 'UTC', 'YYYYMMDD');
begin
  if to_regclass('turnout.' || name) is not null then
    return;
  end if;
  perform pg_advisory_xact_lock(hashtextextended('turnout.make_inbox_partition', 0));
  if to_regclass('turnout.' || name) is not null then
    return;
  end if;
  execute format('create table turnout.%I (like turnout.inbox including defaults including constraints including storage including compression)', name);
  execute format('alter table turnout.%I add primary key (consumer, effect_key, occurred_at)', name);
  execute format('alter table turnout.inbox attach partition turnout.%I for values from (%L) to (%L)', name, lower, upper);
end
$$;

-- Drops the oldest partition that holds only outcomes older than `older_than`; returns how many went: 1, or 0 when there is none.
-- To be run by a scheduler, with at least the longest retention of the consumers and endpoints of this database: a repeat is
-- known no more afterwards. Partitions with an intent (running, queued) stay.
-- One a call, since the inbox is locked until the transaction ends; it gives up at once while the inbox is in use.
create function turnout.drop_inbox_partitions(older_than interval)
returns integer
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '50ms'
as $$
declare
  name text;
  pending boolean;
begin
  if older_than < interval '1 day' then
    raise exception 'Outcomes are kept for a day at least, not %.', older_than;
  end if;
  for name in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'turnout.inbox'::regclass
      and to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp at time zone 'UTC' + interval '7 days' < clock_timestamp() - older_than
    order by c.relname
  loop
    -- First without the lock: what stays disturbs nobody.
    execute format('select exists (select from turnout.%I where outcome in (''running'', ''queued''))', name) into pending;
    continue when pending;
    begin
      execute format('lock table turnout.inbox, turnout.%I in access exclusive mode', name);
      -- And again, by the index: an intent may have come meanwhile.
      execute format('select exists (select from turnout.%I where outcome in (''running'', ''queued''))', name) into pending;
      if not pending then
        execute format('alter table turnout.inbox detach partition turnout.%I', name);
        execute format('drop table turnout.%I', name);
      end if;
    exception when lock_not_available then
      return 0;
    end;
    return case when pending then 0 else 1 end;
  end loop;
  return 0;
end
$$;

select turnout.make_inbox_partition(clock_timestamp());
select turnout.make_inbox_partition(clock_timestamp() + interval '7 days');

-- How far each key of an ordered switchover has come. Never expires.
create table turnout.gate (
  consumer    text not null,
  source      text not null,
  topic       text not null,
  key         text not null,
  generation  integer not null,
  last_number bigint not null,
  halted      text,
  primary key (consumer, source, topic, key)
) with (fillfactor = 70);

-- Events that wait: early (their key number's turn has not come), parked (failed for good, an operator decides),
-- behind (a held one of their key comes first, or the key is halted). The reason is for operators; which one is the next of
-- its key, `isNext` in src/inbox/held.ts decides. Never expires; a row leaves when its event has an outcome.
create table turnout.held (
  id          bigint generated always as identity primary key,
  consumer    text not null,
  effect_key  text not null,
  reason      text not null check (reason in ('early', 'parked', 'behind')),
  source      text not null,
  topic       text not null,
  partition   integer not null,
  "offset"    bigint not null,
  key         text,
  generation  integer,
  number      bigint,
  -- The Kafka message as it came: {"key", "value", "headers", "timestamp"}.
  message     jsonb not null,
  error       text,
  attempts    integer not null default 0,
  held_at     timestamptz not null default clock_timestamp(),
  unique (consumer, effect_key)
);

create index held_number on turnout.held (consumer, source, topic, key, number);
create index held_line on turnout.held (consumer, source, topic, key, id);

-- Takes the lock of an effect and then reads, under it, all that decides about it (decide() in src/inbox/decide.ts).
-- One lock per key for ordered effects, one per effect key for others, until the transaction ends.
-- A function and not one statement: each statement inside takes a snapshot of its own, so what is read is newer than the lock.
-- Whoever waits, waits for a second at most, and is then told that it is not locked: the holder may be a process that was paused.
-- The effect is looked for within a day of its time, not at the exact millisecond: a caller that cuts off the fraction
-- or mistakes the time zone is still recognised, and only one or two partitions are searched.
create function turnout.enter_inbox(consumer text, effect_key text, occurred_at timestamptz, source text, topic text, key text,
                                    ordered boolean, wait boolean, retention_ms bigint, lease_ms bigint)
returns table (locked boolean, too_old boolean, gate_generation integer, gate_number text, gate_halted text,
               known_outcome text, known_event_id text, known_request_hash text, known_answer text, known_attempts integer,
               known_lease_over boolean, known_failed boolean)
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '1s'
as $$
#variable_conflict use_column
declare
  lock_number bigint := hashtextextended(
    case when ordered then concat_ws(e'\x1f', 'key', enter_inbox.consumer, enter_inbox.source, enter_inbox.topic, enter_inbox.key)
         else concat_ws(e'\x1f', 'effect', enter_inbox.consumer, enter_inbox.effect_key) end, 7472);
begin
  locked := pg_try_advisory_xact_lock(lock_number);
  if not locked and wait then
    begin
      perform pg_advisory_xact_lock(lock_number);
      locked := true;
    exception when lock_not_available then
    end;
  end if;
  if not locked then
    return next;
    return;
  end if;
  too_old := enter_inbox.occurred_at < clock_timestamp() - make_interval(secs => retention_ms / 1000.0);
  if ordered then
    select g.generation, g.last_number::text, g.halted into gate_generation, gate_number, gate_halted
      from turnout.gate g
      where g.consumer = enter_inbox.consumer and g.source = enter_inbox.source and g.topic = enter_inbox.topic and g.key = enter_inbox.key;
  end if;
  select i.outcome, i.event_id::text, i.request_hash, i.answer::text, i.attempts,
         i.finished_at < clock_timestamp() - make_interval(secs => lease_ms / 1000.0),
         i.outcome = 'running' and i.reason is not null
    into known_outcome, known_event_id, known_request_hash, known_answer, known_attempts, known_lease_over, known_failed
    from turnout.inbox i
    where i.consumer = enter_inbox.consumer and i.effect_key = enter_inbox.effect_key
      and i.occurred_at >= enter_inbox.occurred_at - interval '1 day' and i.occurred_at <= enter_inbox.occurred_at + interval '1 day'
    limit 1;
  return next;
end
$$;

-- Writes the outcome of an effect and moves the gate of its key; only under the lock of enter_inbox.
-- The gate refuses any step but the next: a caller that forgot the lock gets an error and not a lost event.
create function turnout.record_outcome(consumer text, effect_key text, occurred_at timestamptz, event_id uuid, event_type text,
                                       source text, topic text, key text, generation integer, number bigint, path text,
                                       outcome text, request_hash text, answer jsonb, reason text, attempts integer)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
begin
  insert into turnout.inbox as i (consumer, effect_key, occurred_at, event_id, event_type, source, topic, key, generation, number,
                                  path, outcome, request_hash, answer, reason, attempts)
    values (record_outcome.consumer, record_outcome.effect_key, record_outcome.occurred_at, record_outcome.event_id,
            record_outcome.event_type, record_outcome.source, record_outcome.topic, record_outcome.key, record_outcome.generation,
            record_outcome.number, record_outcome.path, record_outcome.outcome, record_outcome.request_hash, record_outcome.answer,
            record_outcome.reason, record_outcome.attempts)
    on conflict (consumer, effect_key, occurred_at) do update
      set outcome = excluded.outcome, path = excluded.path, request_hash = coalesce(excluded.request_hash, i.request_hash),
          answer = excluded.answer, reason = excluded.reason, attempts = excluded.attempts, finished_at = clock_timestamp()
      where i.outcome in ('running', 'queued');
  if not found then
    raise exception 'The effect % of % already has an outcome.', record_outcome.effect_key, record_outcome.consumer
      using errcode = 'unique_violation';
  end if;
  if record_outcome.outcome in ('running', 'queued') then
    return;
  end if;
  if record_outcome.number is not null then
    insert into turnout.gate as g (consumer, source, topic, key, generation, last_number)
      select record_outcome.consumer, record_outcome.source, record_outcome.topic, record_outcome.key,
             record_outcome.generation, record_outcome.number
      on conflict (consumer, source, topic, key) do update
        set generation = excluded.generation, last_number = excluded.last_number
        where (g.generation = excluded.generation and g.last_number + 1 = excluded.last_number)
           or (g.generation < excluded.generation and excluded.last_number = 1);
    if not found then
      raise exception 'Number % of key % is not the next one for %.', record_outcome.number, record_outcome.key, record_outcome.consumer
        using errcode = 'serialization_failure';
    end if;
  end if;
  delete from turnout.held h where h.consumer = record_outcome.consumer and h.effect_key = record_outcome.effect_key;
end
$$;

-- Keeps an event until its turn comes or an operator decides. Under the lock of its effect, and only without an outcome: what
-- has had its effect by the other path meanwhile would come back, and nothing would ever remove it.
-- 'held'; 'done': it has its outcome; 'busy': somebody is at it, or at its key, just now, and nothing was written.
create function turnout.hold_event(consumer text, effect_key text, occurred_at timestamptz, reason text, source text, topic text,
                                   partition integer, "offset" bigint, key text, generation integer, number bigint,
                                   message jsonb, error text, attempts integer)
returns text
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  entry record;
begin
  select e.locked, e.known_outcome into entry
    from turnout.enter_inbox(hold_event.consumer, hold_event.effect_key, hold_event.occurred_at, hold_event.source, hold_event.topic,
                             hold_event.key, hold_event.number is not null, false, 0, 0) e;
  if not entry.locked then
    return 'busy';
  end if;
  if entry.known_outcome not in ('running', 'queued') then
    delete from turnout.held h where h.consumer = hold_event.consumer and h.effect_key = hold_event.effect_key;
    return 'done';
  end if;
  insert into turnout.held (consumer, effect_key, reason, source, topic, partition, "offset", key, generation, number, message, error, attempts)
    values (hold_event.consumer, hold_event.effect_key, hold_event.reason, hold_event.source, hold_event.topic, hold_event.partition,
            hold_event."offset", hold_event.key, hold_event.generation, hold_event.number, hold_event.message, hold_event.error,
            hold_event.attempts)
    on conflict (consumer, effect_key) do update
      set reason = excluded.reason, error = excluded.error, attempts = excluded.attempts;
  return 'held';
end
$$;

-- Stops a key at its gate, and says why in turnout.alarm; only under the lock of enter_inbox.
create function turnout.halt_key(consumer text, source text, topic text, key text, reason text, detail jsonb)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
begin
  update turnout.gate g set halted = halt_key.reason
    where g.consumer = halt_key.consumer and g.source = halt_key.source and g.topic = halt_key.topic and g.key = halt_key.key;
  insert into turnout.alarm (consumer, kind, detail) values (halt_key.consumer, 'unknown-repeat', halt_key.detail);
end
$$;

-- Lets a halted key go on, after somebody has looked. The effect that halted it is recorded as skipped, or it would halt the key again.
create function turnout.resume_key(consumer text, source text, topic text, key text, reason text)
returns integer
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  skipped integer;
begin
  if coalesce(trim(resume_key.reason), '') = '' then
    raise exception 'To resume a key needs a reason.' using errcode = 'TU012', detail = json_build_object('key', resume_key.key)::text;
  end if;
  perform pg_advisory_xact_lock(hashtextextended(concat_ws(e'\x1f', 'key', consumer, source, topic, key), 7472));
  insert into turnout.inbox (consumer, effect_key, occurred_at, event_id, event_type, source, topic, key, generation, number, path, outcome, reason)
    select distinct on (a.detail ->> 'effectKey') a.consumer, a.detail ->> 'effectKey', (a.detail ->> 'occurredAt')::timestamptz,
           (a.detail ->> 'eventId')::uuid, a.detail ->> 'eventType', a.detail ->> 'source', a.detail ->> 'topic', a.detail ->> 'key',
           (a.detail ->> 'generation')::integer, (a.detail ->> 'number')::bigint, a.detail ->> 'path', 'skipped', resume_key.reason
    from turnout.alarm a
    where a.consumer = resume_key.consumer and a.kind = 'unknown-repeat' and a.detail ->> 'source' = resume_key.source
      and a.detail ->> 'topic' = resume_key.topic and a.detail ->> 'key' = resume_key.key
    on conflict do nothing;
  get diagnostics skipped = row_count;
  delete from turnout.held h using turnout.alarm a
    where a.consumer = resume_key.consumer and a.kind = 'unknown-repeat' and h.consumer = a.consumer
      and h.effect_key = a.detail ->> 'effectKey' and a.detail ->> 'key' = resume_key.key;
  update turnout.gate g set halted = null
    where g.consumer = resume_key.consumer and g.source = resume_key.source and g.topic = resume_key.topic and g.key = resume_key.key;
  return skipped;
end
$$;

-- Lets a consumer go on that has halted with TURNOUT_UNKNOWN_REPEAT, after somebody has looked: the event is to have its effect
-- all the same ('apply': it never had it), or to have the outcome 'skipped' ('skip'). Then start the consumer again.
create function turnout.accept_repeat(consumer text, effect_key text, how text, reason text)
returns boolean -- false: no consumer has halted at it
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_column
declare
  detail jsonb;
  happened timestamptz;
begin
  if coalesce(trim(accept_repeat.reason), '') = '' then
    raise exception 'To accept a repeat needs a reason.' using errcode = 'TU012', detail = json_build_object('effectKey', accept_repeat.effect_key)::text;
  end if;
  if accept_repeat.how is null or accept_repeat.how not in ('apply', 'skip') then
    raise exception 'A repeat is accepted by ''apply'' or ''skip'', not by %.', quote_nullable(accept_repeat.how) using errcode = 'invalid_parameter_value';
  end if;
  select a.detail into detail from turnout.alarm a
    where a.consumer = accept_repeat.consumer and a.kind = 'unknown-repeat' and a.detail ->> 'effectKey' = accept_repeat.effect_key
      and a.detail ->> 'code' = 'TURNOUT_UNKNOWN_REPEAT'
    order by a.id desc limit 1;
  if not found then
    return false;
  end if;
  if accept_repeat.how = 'skip' then
    happened := (detail ->> 'occurredAt')::timestamptz;
    perform turnout.make_inbox_partition(happened);
    insert into turnout.inbox (consumer, effect_key, occurred_at, event_id, event_type, source, topic, key, path, outcome, reason)
      values (accept_repeat.consumer, accept_repeat.effect_key, happened, (detail ->> 'eventId')::uuid, detail ->> 'type',
              detail ->> 'source', detail ->> 'topic', detail ->> 'key', 'event', 'skipped', accept_repeat.reason)
      on conflict do nothing;
  end if;
  update turnout.alarm a
    set detail = a.detail || jsonb_build_object('accepted', accept_repeat.how, 'acceptedBy', session_user, 'reason', accept_repeat.reason)
    where a.consumer = accept_repeat.consumer and a.kind = 'unknown-repeat' and a.detail ->> 'effectKey' = accept_repeat.effect_key;
  return true;
end
$$;

-- Lets a parked event be tried again, with all its attempts: the consumer's sweep takes it, and then those behind it.
create function turnout.retry_parked(consumer text, effect_key text)
returns boolean -- false: no such event is parked
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
begin
  update turnout.held h set reason = 'behind', attempts = 0
    where h.consumer = retry_parked.consumer and h.effect_key = retry_parked.effect_key and h.reason = 'parked';
  return found;
end
$$;

-- Gives a parked event, or one behind it, the outcome 'skipped', for good: those behind it go on. A numbered one can only be
-- skipped when its turn has come.
create function turnout.skip_parked(consumer text, effect_key text, reason text)
returns boolean -- false: no such event is parked or behind
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  parked turnout.held;
  headers jsonb;
  happened timestamptz;
begin
  if coalesce(trim(skip_parked.reason), '') = '' then
    raise exception 'To skip an event needs a reason.' using errcode = 'TU012', detail = json_build_object('effectKey', skip_parked.effect_key)::text;
  end if;
  select * into parked from turnout.held h
    where h.consumer = skip_parked.consumer and h.effect_key = skip_parked.effect_key and h.reason <> 'early';
  if not found then
    return false;
  end if;
  headers := case when parked.message ? 'base64'
                  then convert_from(decode(parked.message ->> 'base64', 'base64'), 'UTF8')::jsonb -> 'headers'
                  else parked.message -> 'headers' end;
  begin
    happened := (headers ->> 'ce_time')::timestamptz;
  exception when data_exception then
    happened := null;
  end;
  if happened is null or coalesce(headers ->> 'ce_id', '') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then
    -- No event: nothing can ever repeat it, so there is no outcome to keep.
    delete from turnout.held h where h.id = parked.id;
    return found;
  end if;
  perform turnout.make_inbox_partition(happened);
  perform from turnout.enter_inbox(parked.consumer, parked.effect_key, happened, parked.source, parked.topic, parked.key,
                                   parked.number is not null, true, 0, 0) e where e.locked;
  if not found then
    raise exception 'The effect % is being applied just now; try again.', parked.effect_key using errcode = 'lock_not_available';
  end if;
  -- Under the lock: a call may have brought the effect meanwhile.
  perform from turnout.held h where h.id = parked.id for update;
  if not found then
    return false;
  end if;
  perform turnout.record_outcome(parked.consumer, parked.effect_key, happened, (headers ->> 'ce_id')::uuid, headers ->> 'ce_type',
                                 parked.source, parked.topic, parked.key, parked.generation, parked.number, 'event', 'skipped',
                                 null, null, skip_parked.reason, parked.attempts);
  return true;
end
$$;

revoke all on all tables in schema turnout from public;
revoke all on all functions in schema turnout from public;
