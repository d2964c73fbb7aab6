-- All stages of a switchover: rpc → shadow → ramp → event → done, and back.

-- In the order in which publishers take their locks.
alter table turnout.switchover
  -- 'bridged': an endpoint that nobody can change is called by a bridge. It has no gate, so calls and events of a key must never meet.
  add column endpoint text not null default 'wrapped' check (endpoint in ('wrapped', 'bridged'));

alter table turnout.rpc_delivery
  -- Stamped in stage shadow: the consumer may compare.
  add column shadow boolean not null default false;

alter table turnout.switchover_history
  -- By a guardrail.
  add column automatic boolean not null default false,
  -- {"forced": ["TU015", …]}: what stood against the change and was overridden; and what a guardrail gave as its grounds.
  add column detail jsonb;

-- What was found when somebody looked whether a switchover may be promoted. Append-only.
create table turnout.switchover_check (
  id         bigint generated always as identity primary key,
  source     text not null,
  switchover text not null,
  -- A check says nothing about another stage change.
  epoch      bigint not null,
  for_stage  text not null check (for_stage in ('rpc', 'shadow', 'ramp', 'event', 'done')),
  verdict    text not null check (verdict in ('ready', 'not-ready', 'inconclusive')),
  findings   jsonb not null default '[]',
  at         timestamptz not null default clock_timestamp(),
  actor      text not null default session_user
);

create index switchover_check_newest on turnout.switchover_check (source, switchover, id desc);

-- Publishes events; as in 000002, with the stage shadow stamped too: ";shadow=1" in routes, "shadow" in stamps, and in what is owed.
-- One event without key numbers, which is what most publish, is written without the sets that several need: docs/decisions/0072.
create or replace function turnout.publish_events(source text, events json, switchovers text[] default '{}', deliver boolean default false)
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
  has_done boolean;
  is_undue boolean;
  undue record;
  counts boolean;
  this_xid xid8;
  one record;
  calls turnout.switchover[];
  one_seq bigint;
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
         bool_or(cardinality(coalesce(e.switchovers, publish_events.switchovers)) > 0),
         exists (select from turnout.switchover s where s.source = publish_events.source and s.stage = 'done')
    into is_source, bad_place, repeated_id, lock_numbers, declares, has_done
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
  if has_done then
    -- What is done stays declared, whatever the code says: it may be deleted, and the consumer would only observe an event without a route.
    select json_agg(json_build_object('id', e.id, 'type', e.type, 'version', e.version, 'key', e.key, 'data', e.data, 'headers', e.headers,
                                      'switchovers', array(select d.name from unnest(coalesce(e.switchovers, publish_events.switchovers)) as d (name)
                                                           union
                                                           select s.name from turnout.switchover s
                                                             where s.source = publish_events.source and s.stage = 'done' and e.type = any (s.event_types)))
                    order by e.place)
      into publish_events.events
      from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb, switchovers text[]))
        with ordinality as e (id, type, version, key, data, headers, switchovers, place);
    declares := exists (select from json_to_recordset(publish_events.events) as e (switchovers text[]) where cardinality(e.switchovers) > 0);
  end if;
  if declares then
    select bool_or(s.name is null or not e.type = any (s.event_types)), bool_or(s.ordering = 'key') into is_undue, counts
      from json_to_recordset(publish_events.events) as e (type text, switchovers text[])
      cross join unnest(coalesce(e.switchovers, publish_events.switchovers)) as d (name)
      left join turnout.switchover s on s.source = publish_events.source and s.name = d.name;
    if is_undue then
      select d.name as switchover, e.type, s.name is not null as known into undue
        from rows from (json_to_recordset(publish_events.events) as (type text, switchovers text[])) with ordinality as e (type, switchovers, place)
        cross join unnest(coalesce(e.switchovers, publish_events.switchovers)) as d (name)
        left join turnout.switchover s on s.source = publish_events.source and s.name = d.name
        where s.name is null or not e.type = any (s.event_types)
        order by e.place limit 1;
      if undue.known then
        raise exception 'Switchover % does not have the event type %.', undue.switchover, undue.type
          using errcode = 'TU018', detail = json_build_object('switchover', undue.switchover, 'type', undue.type)::text;
      end if;
      raise exception 'Switchover % does not exist in source %.', undue.switchover, publish_events.source
        using errcode = 'TU002', detail = json_build_object('switchover', undue.switchover, 'source', publish_events.source)::text;
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
  if not counts and json_array_length(publish_events.events) = 1 then
    select coalesce(e.id, gen_random_uuid()) as id, e.key, e.data, nullif(e.headers, 'null') as headers,
           coalesce(e.switchovers, publish_events.switchovers) as switchovers, r.name as type, r.version, r.topic, r.aggregate
      into one
      from json_to_recordset(publish_events.events) as e (id uuid, type text, version integer, key text, data json, headers jsonb, switchovers text[])
      join turnout.event_type r on r.name = e.type and r.version = e.version;
    select string_agg(p.consumer || '=' || p.route || ';epoch=' || p.epoch || case when p.shadow then ';shadow=1' else '' end, ', ' order by p.consumer),
           jsonb_agg(jsonb_build_object('switchover', p.name, 'consumer', p.consumer, 'route', p.route, 'epoch', p.epoch,
                                        'effectKey', p.consumer || '.' || one.id)
                       || case when p.shadow then '{"shadow": true}'::jsonb else '{}'::jsonb end order by p.consumer),
           array_agg(p.s) filter (where p.route = 'rpc')
      into routes, stamps, calls
      from (select s, s.name, s.consumer, s.epoch, s.stage = 'shadow' as shadow,
                   turnout.route_for(s.stage, s.percent, s.salt, coalesce(one.key, one.id::text)) as route
              from turnout.switchover s
              where s.source = publish_events.source and s.name = any (one.switchovers)
              -- The route is worked out once.
              offset 0) p;
    insert into turnout.outbox as o (xid, id, source, topic, aggregatetype, aggregateid, type, version, payload, routes, headers)
      values (this_xid, one.id, publish_events.source, one.topic, one.aggregate, one.key, one.type, one.version, one.data,
              publish_events.routes, one.headers)
      returning o.seq, o.occurred_at into one_seq, occurred_at;
    if calls is not null then
      insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, key, epoch, shadow, due_at)
        select c.consumer || '.' || one.id, publish_events.source, c.name, one_seq % 16, c.consumer, one.id, one_seq, this_xid, one.topic, one.key,
               c.epoch, c.stage = 'shadow', case when publish_events.deliver then null else clock_timestamp() end
        from unnest(calls) c;
    end if;
    seq := one_seq;
    id := one.id;
    type := one.type;
    version := one.version;
    topic := one.topic;
    key := one.key;
    return next;
    return;
  end if;

  return query
    with given as materialized (
      select e.place, coalesce(e.id, gen_random_uuid()) as id, e.type, e.version, e.key, e.data, nullif(e.headers, 'null') as headers,
             coalesce(e.switchovers, publish_events.switchovers) as switchovers, r.topic, r.aggregate
      from rows from (json_to_recordset(publish_events.events) as (id uuid, type text, version integer, key text, data json, headers jsonb, switchovers text[]))
        with ordinality as e (id, type, version, key, data, headers, switchovers, place)
      join turnout.event_type r on r.name = e.type and r.version = e.version
    ), planned as materialized (
      select g.place, g.id, g.topic, g.key, s.name as switchover, s.consumer, s.ordering, s.epoch, s.generation,
             s.stage = 'shadow' as shadow, turnout.route_for(s.stage, s.percent, s.salt, coalesce(g.key, g.id::text)) as route
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
      select p.place, p.id, p.topic, p.key, p.switchover, p.consumer, p.route, p.epoch, p.shadow, c.generation,
             c.number - count(*) over (partition by p.consumer, p.topic, p.key)
                      + row_number() over (partition by p.consumer, p.topic, p.key order by p.place) as number
      from planned p
      left join counted c on p.ordering = 'key' and c.consumer = p.consumer and c.topic = p.topic and c.key = p.key
    ), routed as materialized (
      select s.place,
             string_agg(s.consumer || '=' || s.route || ';epoch=' || s.epoch || case when s.shadow then ';shadow=1' else '' end
                          || coalesce(';generation=' || s.generation || ';number=' || s.number, ''), ', ' order by s.consumer) as routes,
             jsonb_agg(jsonb_build_object('switchover', s.switchover, 'consumer', s.consumer, 'route', s.route, 'epoch', s.epoch,
                                          'effectKey', s.consumer || '.' || s.id)
                         || case when s.shadow then '{"shadow": true}'::jsonb else '{}'::jsonb end
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
                                        generation, number, epoch, shadow, due_at)
        select s.consumer || '.' || s.id, publish_events.source, s.switchover, w.seq % 16, s.consumer, s.id, w.seq, this_xid, s.topic, s.key,
               s.generation, s.number, s.epoch, s.shadow, case when deliver then null else clock_timestamp() end
        from written w join stamped s on s.id = w.id
        where s.route = 'rpc'
    )
    select w.seq::text, w.id, w.type, w.version, w.topic, w.aggregateid, w.occurred_at, w.routes, coalesce(r.stamps, '[]')
    from written w join given g on g.id = w.id left join routed r on r.place = g.place
    order by w.seq;
end
$$;

-- Creates a switchover in stage rpc, or adds event types to it. What can't change is refused, and so is a type left out: code
-- that runs still gives its calls away, and would get errors for them. The history keeps what was added.
-- `endpoint` says who receives the calls (null: as it is, or 'wrapped' for a new one); it changes in stage rpc only.
drop function turnout.register_switchover(text, text, text, text[], text, text);
create or replace function turnout.register_switchover(source text, name text, consumer text, event_types text[], ordering text, reason text,
                                                       endpoint text default null)
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
    if existing.endpoint <> register_switchover.endpoint then
      if existing.stage <> 'rpc' then
        raise exception 'The endpoint of switchover % is %, and changes in stage rpc only.', existing.name, existing.endpoint
          using errcode = 'TU010', detail = json_build_object('switchover', existing.name, 'endpoint', existing.endpoint)::text;
      end if;
      update turnout.switchover s set endpoint = register_switchover.endpoint
        where s.source = existing.source and s.name = existing.name;
      insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason)
        values (existing.source, existing.name, existing.epoch, existing.stage, existing.stage, existing.percent,
                concat_ws(' ', nullif(trim(register_switchover.reason), ''),
                          format('(endpoint: %s, was %s)', register_switchover.endpoint, existing.endpoint)));
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

  insert into turnout.switchover (source, name, consumer, topic, event_types, ordering, endpoint)
    values (register_switchover.source, register_switchover.name, register_switchover.consumer, shared_topic,
            register_switchover.event_types, register_switchover.ordering, coalesce(register_switchover.endpoint, 'wrapped'));
  insert into turnout.rpc_open (source, switchover, stripe)
    select register_switchover.source, register_switchover.name, n from generate_series(0, 15) n;
  insert into turnout.switchover_history (source, switchover, epoch, to_stage, reason)
    values (register_switchover.source, register_switchover.name, 1, 'rpc', register_switchover.reason);
  return true;
end
$$;

-- Keeps what a look at a switchover found, under the epoch that was looked at (null: the one of now): if the stage was changed
-- meanwhile, set_stage does not go by it. Returns the number of the check.
create function turnout.record_check(source text, name text, for_stage text, verdict text, findings jsonb default '[]', epoch bigint default null)
returns bigint
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  recorded bigint;
begin
  insert into turnout.switchover_check (source, switchover, epoch, for_stage, verdict, findings)
    select s.source, s.name, coalesce(record_check.epoch, s.epoch), record_check.for_stage, record_check.verdict, coalesce(record_check.findings, '[]')
    from turnout.switchover s where s.source = record_check.source and s.name = record_check.name
    returning id into recorded;
  if recorded is null then
    raise exception 'Switchover % does not exist in source %.', record_check.name, record_check.source
      using errcode = 'TU002', detail = json_build_object('switchover', record_check.name, 'source', record_check.source)::text;
  end if;
  return recorded;
end
$$;

create function turnout.stage_rank(stage text)
returns integer
language sql immutable parallel safe
as $$ select array_position(array['rpc', 'shadow', 'ramp', 'event', 'done'], stage) $$;

-- What stands against a stage change, as SQLSTATEs in the order in which they are told; none: it may be made. Pure: the same decision as
-- stageChange() in src/switchover/stage.ts; a test holds them equal.
--   undeclared  events of late whose publishers don't declare the switchover
--   verdict     of the newest check for the stage, if it is of this epoch and at most ten minutes old
--   owed        calls without an outcome
create function turnout.stage_problems(current_stage text, current_percent numeric, endpoint text, ordering text, has_since boolean,
                                       stage text, percent numeric, reason text, undeclared bigint, verdict text, owed bigint)
returns table (place integer, code text, forceable boolean)
language sql immutable set search_path = pg_catalog, pg_temp
as $$
  with asked as (
    select turnout.stage_rank(stage) > turnout.stage_rank(current_stage)
             or (stage = 'ramp' and current_stage = 'ramp' and percent > current_percent) as promotes,
           endpoint = 'bridged' and ordering = 'key' as drains,
           endpoint = 'bridged' and stage in ('shadow', 'ramp') as lacking,
           stage = 'done' and current_stage <> 'event' as too_soon
  )
  select p.place, p.code, p.forceable
  from asked a
  cross join lateral (values
    (1, 'TU011', false, turnout.stage_rank(stage) is null),
    (2, 'TU017', false, current_stage = 'done'),
    (3, 'TU012', false, coalesce(trim(reason), '') = ''),
    (4, 'TU022', false, case when stage = 'ramp' then not coalesce(percent > 0 and percent <= 100, false) else coalesce(percent, 0) <> 0 end),
    (5, 'TU013', false, a.lacking),
    (6, 'TU024', false, a.too_soon),
    -- Without a start of its own the consumer would skip events that were routed to it.
    (7, 'TU014', false, a.promotes and stage <> 'shadow' and not has_since),
    -- Calls and events of a key would meet at an endpoint that can't tell their order; or the endpoint may be gone.
    (8, 'TU021', false, owed > 0 and (stage = 'done' or (stage = 'event' and a.drains))),
    (9, 'TU016', true, a.promotes and undeclared > 0),
    (10, 'TU015', true, (a.promotes or (stage = 'rpc' and a.drains)) and verdict is null),
    (11, 'TU020', true, (a.promotes or (stage = 'rpc' and a.drains)) and verdict <> 'ready')
  ) as p (place, code, forceable, stands)
  where p.stands
    -- Of a change that can't be, nothing else is of interest.
    and (turnout.stage_rank(stage) is not null or p.place = 1)
    and (current_stage <> 'done' or p.place <= 2)
    and (not (a.lacking or a.too_soon) or p.place <= 6)
  order by p.place
$$;

-- Ends the making of calls: deletes the rows that every owed call refers to. Who has stamped a call in a transaction that is still open
-- holds a lock on one of them and is waited for; who would stamp one meanwhile waits here, finds no row, and has to run its transaction
-- again, in which it reads the new stage: not even an old snapshot can stamp a call any more. The calls of those that have just
-- committed are given the rest of the time. All of it takes three seconds at most: publishers that stamp calls wait that long.
create function turnout.close_calls(source text, name text)
returns void
language plpgsql set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  deadline timestamptz := clock_timestamp() + interval '3 seconds';
  before text := current_setting('lock_timeout');
  next_stripe smallint;
  owed bigint;
  oldest text;
begin
  -- With a snapshot of before the wait, calls that were committed meanwhile would not be seen.
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'This stage change is made in a transaction that is read committed, not %.', current_setting('transaction_isolation')
      using errcode = 'invalid_transaction_state';
  end if;
  begin
    for next_stripe in
      select o.stripe from turnout.rpc_open o where o.source = close_calls.source and o.switchover = close_calls.name order by o.stripe
    loop
      perform set_config('lock_timeout', greatest(1, (extract(epoch from deadline - clock_timestamp()) * 1000)::integer) || 'ms', true);
      perform from turnout.rpc_open o
        where o.source = close_calls.source and o.switchover = close_calls.name and o.stripe = next_stripe for update;
    end loop;
  exception when lock_not_available then
    raise exception 'Transactions that publish calls of switchover % are still open.', close_calls.name
      using errcode = 'TU023', detail = json_build_object('switchover', close_calls.name)::text;
  end;
  perform set_config('lock_timeout', before, true);
  loop
    select count(*), min(d.effect_key) into owed, oldest
      from turnout.rpc_delivery d where d.source = close_calls.source and d.switchover = close_calls.name;
    exit when owed = 0;
    if clock_timestamp() >= deadline then
      raise exception 'Switchover % owes % calls.', close_calls.name, owed
        using errcode = 'TU021', detail = json_build_object('switchover', close_calls.name, 'owed', owed, 'effectKey', oldest)::text;
    end if;
    perform pg_sleep(0.01);
  end loop;
  delete from turnout.rpc_open o where o.source = close_calls.source and o.switchover = close_calls.name;
end
$$;

-- Makes a stage change, by whomever; returns the epoch. If several things stand against it, the error is that of the first, its message
-- tells all of them, and its detail lists them under "problems". `expected_epoch`: refused if the stage was changed since that one;
-- compared under the lock of the row, so nobody is overturned who came between.
create function turnout.change_stage(source text, name text, stage text, reason text, percent numeric, force boolean,
                                     automatic boolean, detail jsonb, expected_epoch bigint)
returns bigint
language plpgsql set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  current turnout.switchover;
  -- As the column keeps it: 0.001 is 0.
  share numeric(5, 2);
  promotes boolean;
  undeclared record;
  latest turnout.switchover_check;
  owed bigint := 0;
  problem record;
  told jsonb := '[]';
  forced text[] := '{}';
begin
  select * into current from turnout.switchover s
    where s.source = change_stage.source and s.name = change_stage.name for no key update;
  if not found then
    raise exception 'Switchover % does not exist in source %.', change_stage.name, change_stage.source
      using errcode = 'TU002', detail = json_build_object('switchover', change_stage.name, 'source', change_stage.source)::text;
  end if;
  if change_stage.expected_epoch <> current.epoch then
    raise exception 'Switchover % is in epoch %, and no more in %.', current.name, current.epoch, change_stage.expected_epoch
      using errcode = 'TU042', detail = json_build_object('switchover', current.name, 'stage', current.stage, 'epoch', current.epoch,
                                                          'expectedEpoch', change_stage.expected_epoch)::text;
  end if;
  -- 'NaN' is above everything.
  share := case when change_stage.percent is not null then least(greatest(change_stage.percent, -1), 101) end;
  if change_stage.stage = current.stage and (current.stage <> 'ramp' or share = current.percent) then
    return current.epoch;
  end if;

  promotes := coalesce(turnout.stage_rank(change_stage.stage) > turnout.stage_rank(current.stage), false)
    or (change_stage.stage = 'ramp' and current.stage = 'ramp' and share > current.percent);
  if automatic and promotes then
    raise exception 'An automatic change only goes back, and % comes after %.', change_stage.stage, current.stage
      using errcode = 'TU024', detail = json_build_object('switchover', current.name, 'from', current.stage, 'to', change_stage.stage)::text;
  end if;
  select 0::bigint as events, null::timestamptz as newest into undeclared;
  if promotes then
    select u.events, u.newest into undeclared from turnout.undeclared_publishers(current.source, current.name) u;
  end if;
  select * into latest from turnout.switchover_check c
    where c.source = current.source and c.switchover = current.name and c.for_stage = change_stage.stage and c.epoch = current.epoch
    order by c.id desc limit 1;
  if latest.at < clock_timestamp() - interval '10 minutes' then
    latest := null;
  end if;
  if change_stage.stage = 'done' or current.endpoint = 'bridged' then
    select count(*) into owed from turnout.rpc_delivery d where d.source = current.source and d.switchover = current.name;
  end if;

  for problem in
    select p.code, p.forceable
    from turnout.stage_problems(current.stage, current.percent, current.endpoint, current.ordering, current.since is not null,
                                change_stage.stage, share, change_stage.reason, undeclared.events, latest.verdict, owed) p
    order by p.place
  loop
    if problem.forceable and force then
      forced := forced || problem.code;
    else
      told := told || turnout.stage_problem(problem.code, current, change_stage.stage, change_stage.percent,
        jsonb_build_object('events', undeclared.events, 'newest', undeclared.newest, 'verdict', latest.verdict,
                           'findings', latest.findings, 'owed', owed));
    end if;
  end loop;
  -- Calls that are owed now may be answered in a moment, so nothing is refused for them alone before they were waited for.
  if jsonb_array_length(told) > 0 and not (jsonb_array_length(told) = 1 and told -> 0 ->> 'sqlState' = 'TU021') then
    raise exception '%', (select string_agg(t ->> 'message', ' ' order by n) from jsonb_array_elements(told) with ordinality as x (t, n))
      using errcode = told -> 0 ->> 'sqlState',
            detail = ((told -> 0 -> 'details') || jsonb_build_object('problems', told))::text;
  end if;

  if change_stage.stage = 'done'
     or (change_stage.stage = 'event' and current.endpoint = 'bridged' and current.ordering = 'key') then
    perform turnout.close_calls(current.source, current.name);
  elsif change_stage.stage = 'rpc' then
    -- Only where they were deleted on the way here.
    insert into turnout.rpc_open (source, switchover, stripe)
      select current.source, current.name, n from generate_series(0, 15) n on conflict do nothing;
  end if;
  update turnout.switchover s
    set stage = change_stage.stage, percent = coalesce(share, 0), epoch = s.epoch + 1
    where s.source = current.source and s.name = current.name;
  insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason, forced, automatic, detail)
    values (current.source, current.name, current.epoch + 1, current.stage, change_stage.stage, coalesce(share, 0), change_stage.reason,
            cardinality(forced) > 0, automatic,
            nullif(coalesce(change_stage.detail, '{}')
                     || case when cardinality(forced) > 0 then jsonb_build_object('forced', forced) else '{}' end, '{}'));
  return current.epoch + 1;
end
$$;

-- One thing that stands against a change, in words: {"sqlState", "message", "details"}.
create function turnout.stage_problem(code text, current turnout.switchover, stage text, percent numeric, facts jsonb)
returns jsonb
language sql stable set search_path = pg_catalog, turnout, pg_temp
as $$
  select jsonb_build_object('sqlState', code, 'message', t.message,
                            'details', jsonb_build_object('switchover', current.name) || t.details)
  from (select case code
    when 'TU011' then format('There is no stage %s.', coalesce(stage, 'null'))
    when 'TU017' then format('Switchover %s is done.', current.name)
    when 'TU012' then 'A stage change needs a reason.'
    when 'TU022' then case when stage = 'ramp'
      then format('Stage ramp needs a percentage above 0 and up to 100, to two places, not %s.', coalesce(percent::text, 'none'))
      else format('A percentage goes with stage ramp, not with %s.', stage) end
    when 'TU013' then format('Switchover %s has a bridged endpoint, for which there is no stage %s.', current.name, stage)
    when 'TU024' then format('Stage done comes after event, and switchover %s is in stage %s.', current.name, current.stage)
    when 'TU014' then format('Consumer %s has not recorded where it started.', current.consumer)
    when 'TU021' then format('Switchover %s owes %s calls.', current.name, facts ->> 'owed')
    when 'TU016' then format('Events of switchover %s are still published by code that does not declare it: %s in the last 5 minutes, the newest at %s.',
                             current.name, facts ->> 'events', facts ->> 'newest')
    when 'TU015' then format('Switchover %s has no check of the last ten minutes for stage %s.', current.name, stage)
    when 'TU020' then format('The newest check of switchover %s for stage %s says %s.', current.name, stage, facts ->> 'verdict')
  end as message, case code
    when 'TU011' then jsonb_build_object('stage', stage)
    when 'TU022' then jsonb_build_object('stage', stage, 'percent', percent)
    when 'TU013' then jsonb_build_object('stage', stage)
    when 'TU024' then jsonb_build_object('from', current.stage, 'to', stage)
    when 'TU014' then jsonb_build_object('consumer', current.consumer)
    when 'TU021' then jsonb_build_object('owed', facts -> 'owed')
    when 'TU016' then jsonb_build_object('events', facts -> 'events', 'newest', facts -> 'newest')
    when 'TU015' then jsonb_build_object('stage', stage)
    when 'TU020' then jsonb_build_object('stage', stage, 'verdict', facts -> 'verdict', 'findings', facts -> 'findings')
    else '{}'::jsonb
  end as details) t
$$;

-- Changes the stage with the next transaction; returns the new epoch, or the one there is if nothing changes.
drop function turnout.set_stage(text, text, text, text, numeric, boolean);
create or replace function turnout.set_stage(source text, name text, stage text, reason text, percent numeric default 0, force boolean default false,
                                  expected_epoch bigint default null)
returns bigint
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  select turnout.change_stage(set_stage.source, set_stage.name, set_stage.stage, set_stage.reason, set_stage.percent,
                              coalesce(set_stage.force, false), false, null, set_stage.expected_epoch)
$$;

-- What a guardrail does: goes back to an earlier stage (in ramp: to a lower percentage), never on, with its grounds.
create function turnout.step_back(source text, name text, stage text, reason text, detail jsonb default null, percent numeric default 0,
                                  expected_epoch bigint default null)
returns bigint
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  select turnout.change_stage(step_back.source, step_back.name, step_back.stage, step_back.reason, step_back.percent,
                              false, true, step_back.detail, step_back.expected_epoch)
$$;

-- The snapshot of the newest tick before which everything of a topic was consumed; '1:1:', in which nothing is visible, if none says so.
--   consumed  as turnout.redrive takes it
-- A tick tells what each partition had been given in one generation, counts and generations only go up, and so the tick is looked for
-- as in a book. Ticks that tell nothing of the source (before its first event, after a rebase) decide nothing. In a generation that a
-- partition has left, it has had all; and one of which nothing was read is still in the first.
create function turnout.consumed_snapshot(source text, topic text, consumed jsonb)
returns pg_snapshot
language plpgsql stable set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  oldest integer;
  below bigint;
  above bigint;
  middle bigint;
  probe record;
  done pg_snapshot := '1:1:';
begin
  select coalesce(min(coalesce(c.generation, 1)), 1) into oldest
    from turnout.topic t
    cross join lateral generate_series(0, t.partitions - 1) as p (partition)
    left join lateral (
      select max(c.generation) as generation
      from jsonb_to_recordset(consumed_snapshot.consumed) as c (topic text, partition integer, source text, generation integer)
      where c.source = consumed_snapshot.source and c.topic = t.name and c.partition = p.partition) c on true
    where t.name = consumed_snapshot.topic;
  -- Before a copy into this cluster, snapshots were those of another one: rebase_relay.
  select coalesce(max(t.tick) filter (where t.relay = 'rebase' and t.hi::text = '1:1:'), min(t.tick) - 1), max(t.tick) + 1 into below, above
    from turnout.relay_tick t where t.shard = 0;
  while above - below > 1 loop
    middle := below + (above - below) / 2;
    select t.tick, t.lo, t.numbers, n.generation into probe
      from turnout.relay_tick t
      cross join lateral (select max(substr(k, length(consumed_snapshot.source) + 2)::integer) as generation
                            from jsonb_object_keys(t.numbers) k where starts_with(k, consumed_snapshot.source || '/')) n
      where t.shard = 0 and t.tick > below and t.tick <= middle and n.generation is not null
      order by t.tick desc limit 1;
    if not found then
      below := middle;
    elsif probe.generation > oldest or (probe.generation = oldest and exists (
        select from jsonb_array_elements_text(probe.numbers -> (consumed_snapshot.source || '/' || oldest) -> consumed_snapshot.topic)
               with ordinality as n (count, place)
        where n.count::bigint > coalesce((
          select max(case when c.generation > oldest then n.count::bigint else c.sequence end)
          from jsonb_to_recordset(consumed_snapshot.consumed) as c (topic text, partition integer, source text, generation integer, sequence bigint)
          where c.source = consumed_snapshot.source and c.topic = consumed_snapshot.topic and c.partition = n.place - 1
            and c.generation >= oldest), 0))) then
      above := probe.tick;
    else
      below := middle;
      done := probe.lo;
    end if;
  end loop;
  return done;
end
$$;

-- Brings what was routed to events through the old endpoint: calls are owed for it now, and the sweeper makes them. Returns for how many events.
--   consumed  [{"topic", "partition", "source", "generation", "sequence"}]: how far the consumer is; what it may not have had yet is
--             taken. It is found by ticks, so some is taken that it has had: the consumer knows it by its effect key.
--             Null: everything that was routed to events since the switchover last left rpc.
--   seqs      further events, such as those that the consumer holds
-- May be repeated: what is owed already stays as it is. An event of a transaction that is still open is not found; it goes by Kafka.
create function turnout.redrive(source text, name text, consumed jsonb default null, seqs bigint[] default '{}')
returns bigint
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  current turnout.switchover;
  first_epoch bigint := 0;
  -- Everything that is visible here has been consumed.
  done pg_snapshot := '1:1:';
  redriven bigint;
begin
  -- Held against a change of its endpoint. Stage changes, those of a guardrail above all, don't wait for this; that `done` doesn't come
  -- between is seen to by turnout.rpc_open, to which all that is owed refers.
  select * into current from turnout.switchover s
    where s.source = redrive.source and s.name = redrive.name for key share;
  if not found then
    raise exception 'Switchover % does not exist in source %.', redrive.name, redrive.source
      using errcode = 'TU002', detail = json_build_object('switchover', redrive.name, 'source', redrive.source)::text;
  end if;
  if current.stage = 'done' then
    raise exception 'Switchover % is done.', current.name
      using errcode = 'TU017', detail = json_build_object('switchover', current.name)::text;
  end if;
  if current.endpoint = 'bridged' then
    -- It doesn't know what it has had.
    raise exception 'Switchover % has a bridged endpoint, through which nothing may come twice.', current.name
      using errcode = 'TU013', detail = json_build_object('switchover', current.name)::text;
  end if;
  if redrive.consumed is null then
    select coalesce(max(h.epoch), current.epoch + 1) into first_epoch from turnout.switchover_history h
      where h.source = current.source and h.switchover = current.name and h.from_stage = 'rpc' and h.to_stage <> 'rpc';
  else
    done := turnout.consumed_snapshot(current.source, current.topic, redrive.consumed);
  end if;

  with wanted as (
    select o.seq, o.xid, o.id, o.topic, o.aggregateid, o.type, o.routes from turnout.outbox o
      where o.source = current.source and o.xid >= pg_snapshot_xmin(done) and not pg_visible_in_snapshot(o.xid, done)
    union
    select o.seq, o.xid, o.id, o.topic, o.aggregateid, o.type, o.routes from turnout.outbox o
      where o.source = current.source and o.seq = any (redrive.seqs)
  ), routed as (
    select w.*, e.entry from wanted w
    cross join lateral unnest(string_to_array(w.routes, ', ')) as e (entry)
    where w.topic = current.topic and w.type = any (current.event_types) and starts_with(e.entry, current.consumer || '=event;')
  ), inserted as (
    insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, key,
                                      generation, number, epoch, due_at)
      select current.consumer || '.' || r.id, current.source, current.name, r.seq % 16, current.consumer, r.id, r.seq, r.xid, r.topic,
             r.aggregateid, substring(r.entry from ';generation=(\d+)')::integer, substring(r.entry from ';number=(\d+)')::bigint,
             substring(r.entry from ';epoch=(\d+)')::bigint, clock_timestamp()
      from routed r
      where substring(r.entry from ';epoch=(\d+)')::bigint >= first_epoch or r.seq = any (redrive.seqs)
      order by r.seq
      on conflict (effect_key) do nothing
      returning 1
  )
  select count(*) into redriven from inserted;
  insert into turnout.switchover_history (source, switchover, epoch, from_stage, to_stage, percent, reason, detail)
    values (current.source, current.name, current.epoch, current.stage, current.stage, current.percent,
            format('(calls for events: %s)', redriven), jsonb_build_object('redriven', redriven));
  return redriven;
exception when foreign_key_violation then
  -- It has become so meanwhile.
  raise exception 'Switchover % is done.', current.name
    using errcode = 'TU017', detail = json_build_object('switchover', current.name)::text;
end
$$;

revoke all on turnout.switchover_check from public;
revoke all on all functions in schema turnout from public;
