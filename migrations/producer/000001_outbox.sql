-- The outbox and what the relay needs to publish it. For the database of a producing service.
-- Safe to run with psql on a busy database: it only creates objects of its own.

create schema if not exists turnout;

-- A source is the unit in which order, routes and sequences are counted: one per producing service.
create table turnout.source (
  name       text primary key check (name ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
  -- Counts up when sequences start again at 1 (rebase after a restore, another partition count).
  generation integer not null default 1,
  created_at timestamptz not null default clock_timestamp()
);

-- The partition count is recorded here and never taken from broker metadata: a key must keep its partition.
create table turnout.topic (
  name       text primary key check (name ~ '^[a-zA-Z0-9._-]{1,249}$'),
  partitions integer not null check (partitions between 1 and 10000),
  max_bytes  integer not null default 900000 check (max_bytes > 0),
  created_at timestamptz not null default clock_timestamp()
);

create table turnout.event_type (
  name       text not null,
  version    integer not null check (version > 0),
  topic      text not null references turnout.topic,
  aggregate  text not null,
  -- 'key': events of one key are published in the order in which their transactions were serialised.
  ordering   text not null check (ordering in ('key', 'none')),
  created_at timestamptz not null default clock_timestamp(),
  primary key (name, version)
);

-- Append-only: no row is ever updated or deleted. A superset of what Debezium's Outbox Event Router reads
-- (id, aggregatetype, aggregateid, type, payload).
create table turnout.outbox (
  -- cache 1: with more, sessions draw blocks of numbers and the order of a key is lost.
  seq           bigint generated always as identity (cache 1),
  -- What the relay reads by: the transaction that wrote the row.
  xid           xid8 not null default pg_current_xact_id(),
  id            uuid not null,
  source        text not null,
  -- Stored, so that a later change of configuration can't move a replay.
  topic         text not null,
  aggregatetype text not null,
  aggregateid   text,
  type          text not null,
  version       integer not null,
  payload       json not null,
  -- One text for all consumers in switchover, so that Debezium can carry it as one header.
  routes        text,
  headers       jsonb,
  -- Never now(), which is when the transaction began. Whole milliseconds, so that a JavaScript Date carries it unchanged:
  -- the inbox finds a repeat by it.
  occurred_at   timestamptz(3) not null default clock_timestamp()
) partition by range (seq);

-- The only index while a partition is written.
create index outbox_xid on turnout.outbox (xid);

-- Makes partitions ahead of the sequence; returns how many rows fit before more are needed.
-- A partition is made beside the table and attached, which only takes a SHARE UPDATE EXCLUSIVE lock:
-- `create table … partition of` would wait for, and then block, every publisher.
create function turnout.make_outbox_partitions(ahead integer default 8, span bigint default 1000000)
returns bigint
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
declare
  drawn bigint;
  upper bigint;
  needed bigint;
  name text;
begin
  perform pg_advisory_xact_lock(hashtextextended('turnout.make_outbox_partitions', 0));
  select coalesce(last_value, 0) into drawn
    from pg_sequences
    where schemaname = 'turnout' and sequencename = 'outbox_seq_seq';
  drawn := coalesce(drawn, 0);
  select coalesce(max((regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \(''?(\d+)''?\)'))[1]::bigint), 0)
    into upper
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = 'turnout.outbox'::regclass;
  needed := (drawn / span + 1 + ahead) * span;
  while upper < needed loop
    name := format('outbox_%s', lpad((upper / span)::text, 8, '0'));
    execute format('create table turnout.%I (like turnout.outbox including defaults including constraints including storage including compression)', name);
    execute format('alter table turnout.%I add constraint %I check (seq >= %s and seq < %s)',
                   name, name || '_range', greatest(upper, 0), upper + span);
    execute format('create index %I on turnout.%I (xid)', name || '_xid', name);
    execute format('alter table turnout.outbox attach partition turnout.%I for values from (%s) to (%s)',
                   name, upper, upper + span);
    execute format('alter table turnout.%I drop constraint %I', name, name || '_range');
    upper := upper + span;
  end loop;
  return upper - drawn;
end
$$;

select turnout.make_outbox_partitions();

-- A tick is what became visible between two snapshots, persisted before any of it is published, so that a replay
-- reads the same rows in the same order and gives them the same sequence. Insert-only; its key is the fence
-- between relays. A checkpoint inside a long tick is one more row with the same snapshots and a higher after_seq.
create table turnout.relay_tick (
  shard     integer not null,
  tick      bigint not null,
  lo        pg_snapshot not null,
  hi        pg_snapshot not null,
  after_seq bigint not null default 0,
  -- The counters before this tick: {"<source>": {"<topic>": [count of partition 0, …]}}.
  numbers   jsonb not null,
  relay     text not null,
  at        timestamptz not null default clock_timestamp(),
  primary key (shard, tick)
);

-- What the relay last knew of the database it reads, to notice a restore or a promotion.
create table turnout.relay_shard (
  shard             integer primary key,
  system_identifier text not null,
  timeline          integer not null,
  updated_at        timestamptz not null default clock_timestamp()
);

-- Takes the locks of keyed events early, in one agreed order (the order of the lock numbers), so that two
-- transactions that publish the same keys can't wait for each other.
create function turnout.lock_keys(topic text, keys text[])
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
declare
  number bigint;
begin
  if cardinality(keys) > 1000 then
    raise exception 'One transaction asked for the locks of % keys.', cardinality(keys)
      using errcode = 'TU006', detail = json_build_object('keys', cardinality(keys), 'limit', 1000)::text;
  end if;
  for number in
    select distinct hashtextextended(lock_keys.topic || e'\x1f' || k, 7471) as n from unnest(keys) k order by n
  loop
    perform pg_advisory_xact_lock(number);
  end loop;
end
$$;

-- Declares a source, its topics and its event types. Idempotent; a changed partition count or a changed topic is refused.
-- events: [{"name", "version", "topic", "aggregate", "ordering"}], topics: [{"name", "partitions", "maxBytes"}].
create function turnout.register_events(source text, topics jsonb, events jsonb)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  clash record;
begin
  insert into turnout.source (name) values (register_events.source) on conflict do nothing;
  insert into turnout.topic (name, partitions, max_bytes)
    select t.name, t.partitions, coalesce(t."maxBytes", 900000)
    from jsonb_to_recordset(register_events.topics) as t (name text, partitions integer, "maxBytes" integer)
    on conflict (name) do update set max_bytes = excluded.max_bytes
      where turnout.topic.max_bytes <> excluded.max_bytes;
  select t.name, t.partitions as wanted, r.partitions as recorded into clash
    from jsonb_to_recordset(register_events.topics) as t (name text, partitions integer)
    join turnout.topic r on r.name = t.name and r.partitions <> t.partitions limit 1;
  if found then
    raise exception 'Topic % is recorded with % partitions and declared with %.', clash.name, clash.recorded, clash.wanted
      using errcode = 'TU007', detail = json_build_object('topic', clash.name, 'recorded', clash.recorded, 'declared', clash.wanted)::text;
  end if;
  insert into turnout.event_type (name, version, topic, aggregate, ordering)
    select e.name, e.version, e.topic, e.aggregate, e.ordering
    from jsonb_to_recordset(register_events.events) as e (name text, version integer, topic text, aggregate text, ordering text)
    on conflict do nothing;
  select e.name, e.version, e.topic as wanted, e.ordering as wanted_ordering, r.topic as recorded, r.ordering as recorded_ordering into clash
    from jsonb_to_recordset(register_events.events) as e (name text, version integer, topic text, ordering text)
    join turnout.event_type r on r.name = e.name and r.version = e.version
    where r.topic <> e.topic or r.ordering <> e.ordering limit 1;
  if found then
    raise exception 'Event type % v% is recorded on topic % with order %, and declared on topic % with order %.',
      clash.name, clash.version, clash.recorded, clash.recorded_ordering, clash.wanted, clash.wanted_ordering
      using errcode = 'TU008', detail = json_build_object('type', clash.name, 'version', clash.version)::text;
  end if;
end
$$;

revoke all on all tables in schema turnout from public;
revoke all on all functions in schema turnout from public;
