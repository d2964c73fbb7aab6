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
  -- Older transactions could not know the switchover. Recording `since` waits for them, and the look for undeclared publishers
  -- leaves them out: what has no stamp after that is of code that does not declare it. No effect hangs on this: a consumer
  -- only observes what has no stamp.
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
  -- Named: `publish` turns its violation, a switchover closed meanwhile, into a retry.
  constraint rpc_delivery_open foreign key (source, switchover, stripe) references turnout.rpc_open
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

create index rpc_delivery_due on turnout.rpc_delivery (due_at nulls first);
create index rpc_delivery_key on turnout.rpc_delivery (consumer, source, topic, key, number) where number is not null;
-- Whether calls still need the events of a partition is asked under a lock that holds up the relay. Measured with pgbench: 4 % more
-- WAL for an event that is stamped with a call, no change of its latency; entries come in ascending order.
create index rpc_delivery_seq on turnout.rpc_delivery (seq);

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

-- Names that a publisher's own header can't have: the relay writes these. The same as isReservedHeader() in src/event/envelope.ts.
create function turnout.is_reserved_header(name text)
returns boolean
language sql immutable parallel safe
as $$
  select lower(name) in ('ce_specversion', 'ce_id', 'ce_type', 'ce_source', 'ce_time', 'ce_partitionkey', 'ce_sequence',
                         'content-type', 'turnout-version', 'turnout-seq', 'turnout-routes', 'turnout-refused')
$$;

-- The first header that can't be carried, as a path; null if all can.
create function turnout.bad_header(headers jsonb)
returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
  select case
    when headers is null or jsonb_typeof(headers) = 'null' then null
    when jsonb_typeof(headers) <> 'object' then 'headers'
    else (select 'headers.' || h.key from jsonb_each(headers) h
            where jsonb_typeof(h.value) <> 'string' or h.key = '' or turnout.is_reserved_header(h.key)
            order by h.key limit 1)
  end
$$;

-- Publishes events in the caller's transaction, in the order given.
--   events       [{"id"?, "type", "version", "key"?, "data", "headers"?, "switchovers"?: ["<name>", …]}]
--                switchovers: those to which the calling code has given the calls for this event
--   switchovers  the same, for each event that has no list of its own
--   deliver      true: the caller makes the calls itself right after commit; false: the sweeper makes them at once
-- Gives one row an event, in the order given; stamps: [{"switchover", "consumer", "route", "epoch", "effectKey", "generation"?, "number"?}].
--
-- One statement checks all and finds the locks, one writes all: both cost about the same for one event and for ten.
-- An event is declared for a switchover or it is not; the row's list of types doesn't decide. Code that is older than a type's
-- place in the list goes on calling by itself, and must get no stamp; code that is newer than it has given the call away, and
-- must get an error rather than no stamp.
--
-- Numbers are drawn in the order given because the sort is below the insert, where the default of seq is computed.
create function turnout.publish_events(source text, events json, switchovers text[] default '{}', deliver boolean default false)
returns table (seq text, id uuid, type text, version integer, topic text, key text, occurred_at timestamptz, routes text, stamps jsonb)
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  is_source boolean;
  bad_place bigint;
  repeated_id boolean;
  lock_numbers bigint[];
  lock_number bigint;
  declares boolean;
  undue record;
  this_xid xid8;
begin
  if publish_events.events is null then
    raise exception 'There are no events.' using errcode = 'TU009', detail = '{"path": "events"}';
  end if;

  -- All checks, then all locks, before the first number is drawn.
  select exists (select from turnout.source s where s.name = publish_events.source),
         min(e.place) filter (where r.topic is null
                                 or e.data is null
                                 or octet_length(e.data::text) + coalesce(octet_length(nullif(e.headers, 'null')::text), 0) > t.max_bytes
                                 or (r.ordering = 'key' and e.key is null) or e.key = '' or octet_length(e.key) > 1000
                                 or (e.headers is not null and turnout.bad_header(e.headers) is not null)),
         count(distinct e.id) < count(e.id),
         array_agg(distinct hashtextextended(r.topic || e'\x1f' || e.key, 7471)
                   order by hashtextextended(r.topic || e'\x1f' || e.key, 7471)) filter (where r.ordering = 'key'),
         bool_or(cardinality(coalesce(e.switchovers, publish_events.switchovers)) > 0)
    into is_source, bad_place, repeated_id, lock_numbers, declares
    from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb, switchovers text[]))
      with ordinality as e (id, type, version, key, data, headers, switchovers, place)
    left join turnout.event_type r on r.name = e.type and r.version = e.version
    left join turnout.topic t on t.name = r.topic;

  if not is_source then
    raise exception 'Source % is not registered.', publish_events.source
      using errcode = 'TU001', detail = json_build_object('source', publish_events.source)::text;
  end if;
  if bad_place is not null then
    perform turnout.refuse_event(publish_events.events -> (bad_place - 1)::integer, (bad_place - 1)::integer);
  end if;
  if repeated_id then
    raise exception 'Two of the events have the same id.' using errcode = 'TU009', detail = '{"path": "id"}';
  end if;
  if cardinality(lock_numbers) > 1000 then
    raise exception 'One transaction asked for the locks of % keys.', cardinality(lock_numbers)
      using errcode = 'TU006', detail = json_build_object('keys', cardinality(lock_numbers), 'limit', 1000)::text;
  end if;
  if declares then
    select d.name as switchover, e.type, s.name is not null as known into undue
      from rows from (json_to_recordset(publish_events.events) as (type text, switchovers text[])) with ordinality as e (type, switchovers, place)
      cross join unnest(coalesce(e.switchovers, publish_events.switchovers)) as d (name)
      left join turnout.switchover s on s.source = publish_events.source and s.name = d.name
      where s.name is null or not e.type = any (s.event_types)
      order by e.place limit 1;
    if found and not undue.known then
      raise exception 'Switchover % does not exist in source %.', undue.switchover, publish_events.source
        using errcode = 'TU002', detail = json_build_object('switchover', undue.switchover, 'source', publish_events.source)::text;
    elsif found then
      raise exception 'Switchover % does not have the event type %.', undue.switchover, undue.type
        using errcode = 'TU018', detail = json_build_object('switchover', undue.switchover, 'type', undue.type)::text;
    end if;
  end if;

  -- In one agreed order, so that two transactions that publish the same keys can't wait for each other.
  if lock_numbers is not null then
    foreach lock_number in array lock_numbers loop
      perform pg_advisory_xact_lock(lock_number);
    end loop;
  end if;

  this_xid := pg_current_xact_id();

  if declares is not true then
    return query
      with written as (
        insert into turnout.outbox as o (xid, id, source, topic, aggregatetype, aggregateid, type, version, payload, headers)
        select this_xid, coalesce(e.id, gen_random_uuid()), publish_events.source, r.topic, r.aggregate, e.key, e.type, e.version,
               e.data, nullif(e.headers, 'null')
        from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb))
          with ordinality as e (id, type, version, key, data, headers, place)
        join turnout.event_type r on r.name = e.type and r.version = e.version
        order by e.place
        returning o.seq, o.id, o.type, o.version, o.topic, o.aggregateid, o.occurred_at
      )
      select w.seq::text, w.id, w.type, w.version, w.topic, w.aggregateid, w.occurred_at, null::text, '[]'::jsonb
      from written w order by w.seq;
    return;
  end if;

  -- The stage is read after the locks were taken: who had to wait for a key sees what was changed meanwhile.
  return query
    with given as materialized (
      select e.place, coalesce(e.id, gen_random_uuid()) as id, e.type, e.version, e.key, e.data, nullif(e.headers, 'null') as headers,
             coalesce(e.switchovers, publish_events.switchovers) as switchovers, r.topic, r.aggregate
      from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb, switchovers text[]))
        with ordinality as e (id, type, version, key, data, headers, switchovers, place)
      join turnout.event_type r on r.name = e.type and r.version = e.version
    ), planned as materialized (
      select g.place, g.id, g.topic, g.key, s.name as switchover, s.consumer, s.ordering, s.epoch, s.generation,
             turnout.route_for(s.stage, s.percent, s.salt, coalesce(g.key, g.id::text)) as route
      from given g
      join turnout.switchover s
        on s.source = publish_events.source and s.name = any (g.switchovers)
    ), counted as (
      -- One row a key, however many of its events are published here: the row can be changed only once in a statement.
      insert into turnout.key_number as k (source, consumer, topic, key, generation, number)
        select publish_events.source, p.consumer, p.topic, p.key, p.generation, count(*)
        from planned p where p.ordering = 'key'
        group by p.consumer, p.topic, p.key, p.generation
        order by p.consumer, p.topic, p.key
        on conflict (source, consumer, topic, key) do update
          set number = excluded.number + case when k.generation = excluded.generation then k.number else 0 end,
              generation = excluded.generation
        returning k.consumer, k.topic, k.key, k.generation, k.number
    ), stamped as materialized (
      select p.place, p.id, p.topic, p.key, p.switchover, p.consumer, p.route, p.epoch, c.generation,
             c.number - count(*) over (partition by p.consumer, p.topic, p.key)
                      + row_number() over (partition by p.consumer, p.topic, p.key order by p.place) as number
      from planned p
      left join counted c on p.ordering = 'key' and c.consumer = p.consumer and c.topic = p.topic and c.key = p.key
    ), routed as materialized (
      select s.place,
             string_agg(s.consumer || '=' || s.route || ';epoch=' || s.epoch
                          || coalesce(';generation=' || s.generation || ';number=' || s.number, ''), ', ' order by s.consumer) as routes,
             jsonb_agg(jsonb_build_object('switchover', s.switchover, 'consumer', s.consumer, 'route', s.route, 'epoch', s.epoch,
                                          'effectKey', s.consumer || '.' || s.id)
                         || case when s.number is null then '{}'::jsonb
                                 else jsonb_build_object('generation', s.generation, 'number', s.number) end order by s.consumer) as stamps
      from stamped s group by s.place
    ), written as (
      insert into turnout.outbox as o (xid, id, source, topic, aggregatetype, aggregateid, type, version, payload, routes, headers)
        select this_xid, g.id, publish_events.source, g.topic, g.aggregate, g.key, g.type, g.version, g.data, r.routes, g.headers
        from given g left join routed r on r.place = g.place
        order by g.place
        returning o.seq, o.id, o.type, o.version, o.topic, o.aggregateid, o.occurred_at, o.routes
    ), remembered as (
      insert into turnout.stamp (source, consumer, topic, key, generation, number, seq, xid, event_id, switchover, route, epoch)
        select publish_events.source, s.consumer, s.topic, s.key, s.generation, s.number, w.seq, this_xid, s.id,
               s.switchover, s.route, s.epoch
        from written w join stamped s on s.id = w.id
        where s.number is not null
    ), owed as (
      insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, key,
                                        generation, number, epoch, due_at)
        select s.consumer || '.' || s.id, publish_events.source, s.switchover, w.seq % 16, s.consumer, s.id, w.seq, this_xid, s.topic, s.key,
               s.generation, s.number, s.epoch, case when deliver then null else clock_timestamp() end
        from written w join stamped s on s.id = w.id
        where s.route = 'rpc'
    )
    select w.seq::text, w.id, w.type, w.version, w.topic, w.aggregateid, w.occurred_at, w.routes, coalesce(r.stamps, '[]')
    from written w join given g on g.id = w.id left join routed r on r.place = g.place
    order by w.seq;
end
$$;

-- Says what is wrong with one event.
create function turnout.refuse_event(event json, place integer)
returns void
language plpgsql set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_variable
declare
  event_key text := event ->> 'key';
  bytes integer := octet_length((event -> 'data')::text) + coalesce(octet_length(nullif((event -> 'headers')::jsonb, 'null')::text), 0);
  registered record;
  path text;
begin
  select t.max_bytes, r.ordering into registered
    from turnout.event_type r join turnout.topic t on t.name = r.topic
    where r.name = event ->> 'type' and r.version = (event ->> 'version')::integer;
  if not found then
    raise exception 'Event type % v% is not registered.', event ->> 'type', event ->> 'version'
      using errcode = 'TU003', detail = json_build_object('type', event ->> 'type', 'version', event -> 'version', 'index', place)::text;
  end if;
  if coalesce(json_typeof(event -> 'data'), 'null') = 'null' then
    raise exception 'Event % has no data.', event ->> 'type'
      using errcode = 'TU009', detail = json_build_object('type', event ->> 'type', 'path', 'data', 'index', place)::text;
  end if;
  if bytes > registered.max_bytes then
    raise exception 'The payload of % has % bytes with its headers; its topic takes %.', event ->> 'type', bytes, registered.max_bytes
      using errcode = 'TU004', detail = json_build_object('type', event ->> 'type', 'bytes', bytes, 'maxBytes', registered.max_bytes, 'index', place)::text;
  end if;
  if registered.ordering = 'key' and coalesce(event_key, '') = '' then
    raise exception 'Event % is ordered by key and has none.', event ->> 'type'
      using errcode = 'TU005', detail = json_build_object('type', event ->> 'type', 'path', 'key', 'index', place)::text;
  end if;
  path := case when event_key = '' or octet_length(event_key) > 1000 then 'key' else turnout.bad_header((event -> 'headers')::jsonb) end;
  raise exception 'Event % has a % that can''t be carried.', event ->> 'type', coalesce(path, 'field')
    using errcode = 'TU009', detail = json_build_object('type', event ->> 'type', 'path', path, 'index', place)::text;
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

-- Events of a key between two of its numbers, in order: what has to be sent before a call that is ahead of them.
-- A function, so that who makes calls need not be allowed to read the outbox.
create function turnout.missing_events(consumer text, source text, topic text, key text, generation integer,
                                       after_number bigint, below_number bigint, most integer)
returns table (number bigint, id uuid, source text, topic text, aggregateid text, type text, version integer, payload json,
               headers jsonb, occurred_at timestamptz)
language sql stable security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  select s.number, o.id, o.source, o.topic, o.aggregateid, o.type, o.version, o.payload, o.headers, o.occurred_at
  from turnout.stamp s
  join turnout.outbox o on o.xid = s.xid and o.seq = s.seq
  where s.consumer = $1 and s.source = $2 and s.topic = $3 and s.key = $4 and s.generation = $5
    and s.number > after_number and s.number < below_number
  order by s.number
  limit most
$$;

-- Creates a switchover in stage rpc, or adds event types to it. What can't change is refused, and so is a type left out: code
-- that runs still gives its calls away, and would get errors for them. The history keeps what was added.
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
  left_out text;
  added text;
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
    select string_agg(t, ', ' order by n) into left_out
      from unnest(existing.event_types) with ordinality as l (t, n) where not t = any (register_switchover.event_types);
    if left_out is not null then
      raise exception 'Switchover % has event types that were left out: %.', existing.name, left_out
        using errcode = 'TU010', detail = json_build_object('switchover', existing.name, 'types', left_out)::text;
    end if;
    select string_agg(t, ', ' order by n) into added
      from unnest(register_switchover.event_types) with ordinality as l (t, n) where not t = any (existing.event_types);
    if added is not null then
      update turnout.switchover s set event_types = register_switchover.event_types
        where s.source = existing.source and s.name = existing.name;
      insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason)
        values (existing.source, existing.name, existing.epoch, existing.stage, existing.stage, existing.percent,
                concat_ws(' ', nullif(trim(register_switchover.reason), ''), format('(event types added: %s)', added)));
    end if;
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

-- Whether events of a switchover's types are still published by code that does not declare it: that code makes the call
-- itself, as before. Looks at the newest events only (they are found by xid, the one index there is), and at no more
-- than 20,000 of them, so that it costs the same on a busy outbox.
create function turnout.undeclared_publishers(source text, name text, within_time interval default '5 minutes')
returns table (events bigint, newest timestamptz)
language sql stable security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  select count(*), max(recent.occurred_at)
  from turnout.switchover s
  cross join lateral (
    select o.type, o.source, o.routes, o.occurred_at
    from turnout.outbox o
    where o.xid > s.created_xid
    order by o.xid desc
    limit 20000
  ) recent
  where s.source = undeclared_publishers.source and s.name = undeclared_publishers.name
    and recent.source = s.source and recent.type = any (s.event_types)
    and recent.occurred_at > clock_timestamp() - within_time
    and position(', ' || s.consumer || '=' in ', ' || coalesce(recent.routes, '')) = 0
$$;

-- Changes the stage with the next transaction; returns the new epoch.
create function turnout.set_stage(source text, name text, stage text, reason text, percent numeric default 0, force boolean default false)
returns bigint
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  current turnout.switchover;
  undeclared record;
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
  if current.stage = 'done' then
    raise exception 'Switchover % is done.', set_stage.name
      using errcode = 'TU017', detail = json_build_object('switchover', set_stage.name)::text;
  end if;
  if set_stage.stage = 'event' then
    -- Not to be forced: without a start of its own the consumer would skip events that were routed to it.
    if current.since is null then
      raise exception 'Consumer % has not recorded where it started.', current.consumer
        using errcode = 'TU014', detail = json_build_object('switchover', set_stage.name, 'consumer', current.consumer)::text;
    end if;
    if not force then
      select u.events, u.newest into undeclared from turnout.undeclared_publishers(set_stage.source, set_stage.name) u;
      if undeclared.events > 0 then
        raise exception 'Events of switchover % are still published by code that does not declare it: % in the last 5 minutes, the newest at %.',
          set_stage.name, undeclared.events, undeclared.newest
          using errcode = 'TU016', detail = json_build_object('switchover', set_stage.name, 'events', undeclared.events, 'newest', undeclared.newest)::text;
      end if;
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
