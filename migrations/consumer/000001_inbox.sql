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
  kind       text not null check (kind in ('sequence-hole', 'unknown-repeat', 'skipped-old', 'halted')),
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
  -- 'running' is only for detached handlers and queued work: an intent, written before the effect.
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
-- behind (successors of a parked one). Never expires; a row leaves when its event has an outcome.
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

revoke all on all tables in schema turnout from public;
revoke all on all functions in schema turnout from public;
