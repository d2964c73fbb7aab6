-- Switchovers at the producer: stages, stamps, calls that are still owed; and publishing, which writes all of them.

-- One consumer's move from calls to events, for one event type or several that share topic and key.
create table turnout.switchover (
  source      text not null references turnout.source,
  name        text not null check (name ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
  consumer    text not null check (consumer ~ '^[a-z0-9][a-z0-9._-]{0,99}$'),
  topic       text not null references turnout.topic,
  event_types text[] not null check (cardinality(event_types) > 0),
  ordering    text not null check (ordering in ('key', 'none')),
  stage       text not null default 'rpc' check (stage in ('rpc', 'shadow', 'ramp', 'event', 'done')),
  percent     numeric(5, 2) not null default 0 check (percent between 0 and 100),
  -- Which stage change an event was stamped under. It explains; nothing is decided by it.
  epoch       bigint not null default 1,
  -- Key numbers start again at 1 under a new generation.
  generation  integer not null default 1,
  salt        text not null default gen_random_uuid()::text,
  -- {"<topic>": ["<offset of partition 0>", …]}: where the consumer started. Without it no event may be routed to it.
  since       jsonb,
  created_xid xid8 not null default pg_current_xact_id(),
  created_at  timestamptz not null default clock_timestamp(),
  primary key (source, name)
);

-- Key numbers are counted per (source, consumer, topic, key): two ordered switchovers must not share them.
create unique index switchover_ordered on turnout.switchover (source, consumer, topic) where ordering = 'key';

create table turnout.switchover_history (
  id         bigint generated always as identity primary key,
  source     text not null,
  switchover text not null,
  epoch      bigint not null,
  from_stage text,
  to_stage   text not null,
  percent    numeric(5, 2) not null default 0,
  reason     text not null check (length(trim(reason)) > 0),
  forced     boolean not null default false,
  actor      text not null default session_user,
  at         timestamptz not null default clock_timestamp()
);

-- While these rows stand, calls may be owed. Closing a switchover for good deletes them, which waits for every
-- transaction that still stamps a call. Striped, so that publishers don't share one lock.
create table turnout.rpc_open (
  source     text not null,
  switchover text not null,
  stripe     smallint not null,
  primary key (source, switchover, stripe),
  foreign key (source, switchover) references turnout.switchover (source, name)
);

-- A call that is owed: written with the event, deleted by an answer that carries the consumer's outcome.
create table turnout.rpc_delivery (
  effect_key   text primary key,
  source       text not null,
  switchover   text not null,
  stripe       smallint not null,
  consumer     text not null,
  event_id     uuid not null,
  seq          bigint not null,
  xid          xid8 not null,
  topic        text not null,
  key          text,
  generation   integer,
  number       bigint,
  epoch        bigint not null,
  -- When the sweeper may call. Null: a process promised to call right after its commit; the sweeper sets a time
  -- when it first sees the row, so that no clock but the database's counts.
  due_at       timestamptz,
  attempts     integer not null default 0,
  last_error   text,
  foreign key (source, switchover, stripe) references turnout.rpc_open
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

create index rpc_delivery_due on turnout.rpc_delivery (due_at nulls first);
create index rpc_delivery_key on turnout.rpc_delivery (consumer, source, topic, key, number) where number is not null;

-- Dense count of one key's events for one ordered consumer.
create table turnout.key_number (
  source     text not null,
  consumer   text not null,
  topic      text not null,
  key        text not null,
  generation integer not null,
  number     bigint not null,
  primary key (source, consumer, topic, key)
) with (fillfactor = 70);

-- Where to find the event that has a key number, to send a missing one again. Insert-only; goes with its partition.
create table turnout.stamp (
  source     text not null,
  consumer   text not null,
  topic      text not null,
  key        text not null,
  generation integer not null,
  number     bigint not null,
  seq        bigint not null,
  xid        xid8 not null,
  event_id   uuid not null,
  switchover text not null,
  route      text not null check (route in ('rpc', 'event')),
  epoch      bigint not null,
  primary key (consumer, source, topic, key, generation, number)
);

-- 0 … 9999, the same for ever for one (salt, key), so that raising the percentage only adds keys.
create function turnout.ramp_bucket(salt text, key text)
returns integer
language sql immutable parallel safe
as $$ select (('x' || substr(md5(salt || ':' || key), 1, 8))::bit(32)::bigint % 10000)::integer $$;

-- The route of one event under a stage. The same decision as routeFor() in src/switchover/stage.ts; a test holds them equal.
create function turnout.route_for(stage text, percent numeric, salt text, key text)
returns text
language sql immutable parallel safe
as $$
  select case stage
    when 'rpc' then 'rpc'
    when 'shadow' then 'rpc'
    when 'ramp' then case when turnout.ramp_bucket(salt, key) < percent * 100 then 'event' else 'rpc' end
    when 'event' then 'event'
    when 'done' then 'event'
  end
$$;

-- Publishes events in the caller's transaction, in the order given.
--   events       [{"id"?, "type", "version", "key"?, "data", "headers"?}]
--   switchovers  names of the switchovers that the calling code has given its calls to
--   deliver      true: the caller makes the calls itself right after commit; false: the sweeper makes them at once
-- Gives one row an event, in the order given; stamps: [{"switchover", "consumer", "route", "epoch", "effectKey", "generation"?, "number"?}].
create function turnout.publish_events(source text, events json, switchovers text[] default '{}', deliver boolean default false)
returns table (seq text, id uuid, type text, version integer, topic text, key text, occurred_at timestamptz, routes text, stamps jsonb)
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  event record;
  plan record;
  lock_number bigint;
  lock_count integer;
  event_stamp jsonb;
  all_stamps jsonb;
  route text;
  key_number bigint;
  key_generation integer;
  event_routes text;
  event_id uuid;
  event_seq bigint;
  event_time timestamptz;
  this_xid xid8;
  declared text;
begin
  if not exists (select from turnout.source s where s.name = publish_events.source) then
    raise exception 'Source % is not registered.', publish_events.source
      using errcode = 'TU001', detail = json_build_object('source', publish_events.source)::text;
  end if;

  foreach declared in array switchovers loop
    if not exists (select from turnout.switchover s where s.source = publish_events.source and s.name = declared) then
      raise exception 'Switchover % does not exist in source %.', declared, publish_events.source
        using errcode = 'TU002', detail = json_build_object('switchover', declared, 'source', publish_events.source)::text;
    end if;
  end loop;

  -- All checks, then all locks, before the first number is drawn.
  lock_count := 0;
  for event in
    select e.type, e.version, e.key, t.name as topic, t.max_bytes, r.ordering, octet_length(e.data::text) as bytes, e.data is null as empty
    from json_to_recordset(publish_events.events) as e (type text, version integer, key text, data json)
    left join turnout.event_type r on r.name = e.type and r.version = e.version
    left join turnout.topic t on t.name = r.topic
  loop
    if event.topic is null then
      raise exception 'Event type % v% is not registered.', event.type, event.version
        using errcode = 'TU003', detail = json_build_object('type', event.type, 'version', event.version)::text;
    end if;
    if event.empty then
      raise exception 'Event % has no data.', event.type
        using errcode = 'TU009', detail = json_build_object('type', event.type, 'path', 'data')::text;
    end if;
    if event.bytes > event.max_bytes then
      raise exception 'The payload of % has % bytes, its topic % takes %.', event.type, event.bytes, event.topic, event.max_bytes
        using errcode = 'TU004', detail = json_build_object('type', event.type, 'bytes', event.bytes, 'maxBytes', event.max_bytes)::text;
    end if;
    if event.ordering = 'key' and coalesce(event.key, '') = '' then
      raise exception 'Event % is ordered by key and has none.', event.type
        using errcode = 'TU005', detail = json_build_object('type', event.type, 'path', 'key')::text;
    end if;
  end loop;
  for lock_number in
    select distinct hashtextextended(r.topic || e'\x1f' || e.key, 7471) as n
    from json_to_recordset(publish_events.events) as e (type text, version integer, key text)
    join turnout.event_type r on r.name = e.type and r.version = e.version
    where r.ordering = 'key'
    order by n
  loop
    lock_count := lock_count + 1;
    if lock_count > 1000 then
      raise exception 'One transaction asked for the locks of more than 1000 keys.'
        using errcode = 'TU006', detail = json_build_object('limit', 1000)::text;
    end if;
    perform pg_advisory_xact_lock(lock_number);
  end loop;

  this_xid := pg_current_xact_id();

  for event in
    select e.id, e.type, e.version, e.key, e.data, e.headers, r.topic, r.aggregate
    from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb))
      with ordinality as e (id, type, version, key, data, headers, place)
    join turnout.event_type r on r.name = e.type and r.version = e.version
    order by e.place
  loop
    event_id := coalesce(event.id, gen_random_uuid());
    all_stamps := '[]';
    event_routes := null;

    if cardinality(switchovers) > 0 then
      for plan in
        select s.name, s.consumer, s.ordering, s.stage, s.percent, s.salt, s.epoch, s.generation
        from turnout.switchover s
        where s.source = publish_events.source and s.name = any (switchovers) and event.type = any (s.event_types)
        order by s.consumer
      loop
        route := turnout.route_for(plan.stage, plan.percent, plan.salt, coalesce(event.key, event_id::text));
        event_stamp := jsonb_build_object('switchover', plan.name, 'consumer', plan.consumer, 'route', route,
          'epoch', plan.epoch, 'effectKey', plan.consumer || '.' || event_id);
        event_routes := coalesce(event_routes || ', ', '') || plan.consumer || '=' || route || ';epoch=' || plan.epoch;
        if plan.ordering = 'key' then
          insert into turnout.key_number as k (source, consumer, topic, key, generation, number)
            values (publish_events.source, plan.consumer, event.topic, event.key, plan.generation, 1)
            on conflict (source, consumer, topic, key) do update
              set number = case when k.generation = excluded.generation then k.number + 1 else 1 end,
                  generation = excluded.generation
            returning k.number, k.generation into key_number, key_generation;
          event_stamp := event_stamp || jsonb_build_object('generation', key_generation, 'number', key_number);
          event_routes := event_routes || ';generation=' || key_generation || ';number=' || key_number;
        end if;
        all_stamps := all_stamps || event_stamp;
      end loop;
    end if;

    insert into turnout.outbox as o (xid, id, source, topic, aggregatetype, aggregateid, type, version, payload, routes, headers)
      values (this_xid, event_id, publish_events.source, event.topic, event.aggregate, event.key, event.type, event.version,
              event.data, event_routes, event.headers)
      returning o.seq, o.occurred_at into event_seq, event_time;

    if event_routes is not null then
      insert into turnout.stamp (source, consumer, topic, key, generation, number, seq, xid, event_id, switchover, route, epoch)
        select publish_events.source, s.consumer, event.topic, event.key, s.generation, s.number, event_seq, this_xid, event_id,
               s.switchover, s.route, s.epoch
        from jsonb_to_recordset(all_stamps) as s (switchover text, consumer text, route text, epoch bigint, generation integer, number bigint)
        where s.number is not null;
      insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, key, generation, number, epoch, due_at)
        select s."effectKey", publish_events.source, s.switchover, event_seq % 16, s.consumer, event_id, event_seq, this_xid, event.topic,
               event.key, s.generation, s.number, s.epoch, case when deliver then null else clock_timestamp() end
        from jsonb_to_recordset(all_stamps) as s (switchover text, consumer text, route text, epoch bigint, "effectKey" text, generation integer, number bigint)
        where s.route = 'rpc';
    end if;

    seq := event_seq; id := event_id; type := event.type; version := event.version; topic := event.topic; key := event.key;
    occurred_at := event_time; routes := event_routes; stamps := all_stamps;
    return next;
  end loop;
end
$$;

-- One event, from any language, in the caller's own transaction:
--   select turnout.publish('orders', 'orders.order-placed', 1, 'order-1', '{"orderId": "order-1"}', switchovers => '{order-confirmation}');
-- Returns the event's id. The sweeper makes the calls that are due.
create function turnout.publish(source text, type text, version integer, key text, data json,
                                headers jsonb default null, switchovers text[] default '{}', id uuid default gen_random_uuid())
returns uuid
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  select p.id from turnout.publish_events(
    publish.source,
    json_build_array(json_build_object('id', publish.id, 'type', publish.type, 'version', publish.version, 'key', publish.key,
                                       'data', publish.data, 'headers', publish.headers)),
    publish.switchovers) p
$$;

-- Creates a switchover in stage rpc, or brings the list of its event types up to date. What can't change is refused.
create function turnout.register_switchover(source text, name text, consumer text, event_types text[], ordering text, reason text)
returns boolean -- true: created now
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  existing turnout.switchover;
  shared_topic text;
  unknown text;
  clash text;
begin
  select t into unknown from unnest(event_types) t where not exists (select from turnout.event_type e where e.name = t) limit 1;
  if found then
    raise exception 'Event type % is not registered.', unknown
      using errcode = 'TU003', detail = json_build_object('type', unknown)::text;
  end if;
  select min(e.topic) into shared_topic from turnout.event_type e where e.name = any (event_types) having min(e.topic) = max(e.topic);
  if not found then
    raise exception 'The event types of switchover % are on several topics.', register_switchover.name
      using errcode = 'TU010', detail = json_build_object('switchover', register_switchover.name)::text;
  end if;
  if register_switchover.ordering = 'key' and exists (select from turnout.event_type e where e.name = any (event_types) and e.ordering <> 'key') then
    raise exception 'Switchover % is ordered and one of its event types is not.', register_switchover.name
      using errcode = 'TU010', detail = json_build_object('switchover', register_switchover.name)::text;
  end if;
  select s.name into clash from turnout.switchover s
    where s.source = register_switchover.source and s.consumer = register_switchover.consumer
      and s.name <> register_switchover.name and s.event_types && register_switchover.event_types limit 1;
  if found then
    raise exception 'Switchover % already moves consumer % for one of these event types.', clash, register_switchover.consumer
      using errcode = 'TU010', detail = json_build_object('switchover', register_switchover.name, 'other', clash)::text;
  end if;

  select * into existing from turnout.switchover s
    where s.source = register_switchover.source and s.name = register_switchover.name for update;
  if found then
    if existing.consumer <> register_switchover.consumer or existing.ordering <> register_switchover.ordering
       or existing.topic <> shared_topic then
      raise exception 'Switchover % is recorded for consumer %, topic %, order %, and declared otherwise.',
        existing.name, existing.consumer, existing.topic, existing.ordering
        using errcode = 'TU010', detail = json_build_object('switchover', existing.name)::text;
    end if;
    update turnout.switchover s set event_types = register_switchover.event_types
      where s.source = existing.source and s.name = existing.name and s.event_types <> register_switchover.event_types;
    return false;
  end if;

  insert into turnout.switchover (source, name, consumer, topic, event_types, ordering)
    values (register_switchover.source, register_switchover.name, register_switchover.consumer, shared_topic,
            register_switchover.event_types, register_switchover.ordering);
  insert into turnout.rpc_open (source, switchover, stripe)
    select register_switchover.source, register_switchover.name, n from generate_series(0, 15) n;
  insert into turnout.switchover_history (source, switchover, epoch, to_stage, reason)
    values (register_switchover.source, register_switchover.name, 1, 'rpc', register_switchover.reason);
  return true;
end
$$;

-- Records where the consumer started, once the transactions that were open when the switchover was created are over.
create function turnout.record_since(source text, name text, since jsonb)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
begin
  update turnout.switchover s set since = record_since.since
    where s.source = record_since.source and s.name = record_since.name and s.since is null;
end
$$;

-- Changes the stage with the next transaction; returns the new epoch.
create function turnout.set_stage(source text, name text, stage text, reason text, percent numeric default 0, force boolean default false)
returns bigint
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  current turnout.switchover;
  undeclared text;
begin
  if set_stage.stage is null or set_stage.stage not in ('rpc', 'shadow', 'ramp', 'event', 'done') then
    raise exception 'There is no stage %.', coalesce(set_stage.stage, 'null')
      using errcode = 'TU011', detail = json_build_object('stage', set_stage.stage)::text;
  end if;
  if coalesce(trim(set_stage.reason), '') = '' then
    raise exception 'A stage change needs a reason.'
      using errcode = 'TU012', detail = json_build_object('switchover', set_stage.name)::text;
  end if;
  select * into current from turnout.switchover s
    where s.source = set_stage.source and s.name = set_stage.name for no key update;
  if not found then
    raise exception 'Switchover % does not exist in source %.', set_stage.name, set_stage.source
      using errcode = 'TU002', detail = json_build_object('switchover', set_stage.name, 'source', set_stage.source)::text;
  end if;
  if set_stage.stage in ('shadow', 'ramp', 'done') then
    raise exception 'Stage % is not available yet.', set_stage.stage
      using errcode = 'TU013', detail = json_build_object('switchover', set_stage.name, 'stage', set_stage.stage)::text;
  end if;
  if set_stage.stage = current.stage then
    return current.epoch;
  end if;
  if set_stage.stage = 'event' then
    -- Not to be forced: without a start of its own the consumer would skip events that were routed to it.
    if current.since is null then
      raise exception 'Consumer % has not recorded where it started.', current.consumer
        using errcode = 'TU014', detail = json_build_object('switchover', set_stage.name, 'consumer', current.consumer)::text;
    end if;
    if not force then
      raise exception 'Switchover % has no checks that say it is ready.', set_stage.name
        using errcode = 'TU015', detail = json_build_object('switchover', set_stage.name)::text;
    end if;
  end if;
  update turnout.switchover s
    set stage = set_stage.stage, percent = coalesce(set_stage.percent, 0), epoch = s.epoch + 1
    where s.source = current.source and s.name = current.name;
  insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason, forced)
    values (current.source, current.name, current.epoch + 1, current.stage, set_stage.stage, coalesce(set_stage.percent, 0),
            set_stage.reason, force);
  return current.epoch + 1;
end
$$;

revoke all on all tables in schema turnout from public;
revoke all on all functions in schema turnout from public;
