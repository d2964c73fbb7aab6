-- An event whose id is of the caller's choice is published once, however often it is published: a client's retry, or a step of a
-- workflow that runs again. Random ids can't come twice and cost nothing here.

create table turnout.published_id (
  id          uuid primary key,
  -- All that follows is null only inside the transaction that claims the id, before its event is written.
  source      text,
  type        text,
  version     integer,
  topic       text,
  key         text,
  seq         bigint,
  xid         xid8,
  occurred_at timestamptz(3),
  routes      text,
  stamps      jsonb,
  claimed_at  timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

create index published_id_claimed on turnout.published_id (claimed_at);

-- Publishes events of which some have an id of the caller's choice. One whose id is known gives its first row again, with its number,
-- time and stamps, and writes nothing; `data` and `headers` are then the first ones too, while the outbox has them. An id that is known
-- for another source, type or key is refused. The rows come with the place of each event in `events`, from 1.
-- Whoever publishes an id while another transaction does waits for its end.
create function turnout.publish_once(source text, events json, switchovers text[] default '{}', deliver boolean default false)
returns table (place bigint, seq text, id uuid, type text, version integer, topic text, key text, occurred_at timestamptz, routes text,
               stamps jsonb, is_known boolean, data json, headers jsonb)
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  ids uuid[];
  lock_numbers bigint[];
  lock_number bigint;
  claimed uuid[];
  reused record;
  fresh json;
  places bigint[];
begin
  select array_agg(distinct e.id) filter (where e.id is not null),
         array_agg(distinct hashtextextended(r.topic || e'\x1f' || e.key, 7471)
                   order by hashtextextended(r.topic || e'\x1f' || e.key, 7471)) filter (where r.ordering = 'key')
    into ids, lock_numbers
    from json_to_recordset(publish_once.events) as e (id uuid, type text, version integer, key text)
    left join turnout.event_type r on r.name = e.type and r.version = e.version;
  if cardinality(ids) < (select count(e.id) from json_to_recordset(publish_once.events) as e (id uuid)) then
    raise exception 'Two of the events have the same id.' using errcode = 'TU009', detail = '{"path": "id"}';
  end if;

  -- First the keys, as in publish_events: a transaction that has published one of them before can then not wait here for one that
  -- waits for it. Too many are refused there.
  if cardinality(lock_numbers) <= 1000 then
    foreach lock_number in array lock_numbers loop
      perform pg_advisory_xact_lock(lock_number);
    end loop;
  end if;

  -- In one order. Who comes second waits here; after a rollback of the first the id is free.
  with claim as (
    insert into turnout.published_id as p (id) select i from unnest(ids) i order by i
      on conflict (id) do nothing
      returning p.id
  )
  select coalesce(array_agg(c.id), '{}') into claimed from claim c;
  if (select count(*) from turnout.published_id k where k.id = any (ids)) < cardinality(ids) then
    -- Too old, and deleted between the two statements.
    raise exception 'The id of an event was forgotten just now.' using errcode = 'serialization_failure';
  end if;

  select k.id, e.place, case when k.source <> publish_once.source then 'source' when k.type <> e.type then 'type' else 'key' end as what
    into reused
    from rows from (json_to_recordset(publish_once.events) as (id uuid, type text, key text)) with ordinality as e (id, type, key, place)
    join turnout.published_id k on k.id = e.id
    where k.seq is not null and (k.source <> publish_once.source or k.type is distinct from e.type or k.key is distinct from e.key)
    order by e.place limit 1;
  if found then
    raise exception 'The id % is that of an event of another %.', reused.id, reused.what
      using errcode = 'TU035', detail = json_build_object('id', reused.id, 'path', reused.what, 'index', reused.place - 1)::text;
  end if;

  select json_agg(e.event order by e.place), array_agg(e.place order by e.place) into fresh, places
    from json_array_elements(publish_once.events) with ordinality as e (event, place)
    where e.event ->> 'id' is null or (e.event ->> 'id')::uuid = any (claimed);
  if cardinality(claimed) = coalesce(cardinality(ids), 0) then
    -- As it came: what is wrong with it is said of its place.
    fresh := publish_once.events;
  end if;

  if places is not null or publish_once.events is null then
    return query
      with published as materialized (
        select p.*, row_number() over (order by p.seq::bigint) as nth
        from turnout.publish_events(publish_once.source, fresh, publish_once.switchovers, publish_once.deliver) p
      ), kept as (
        update turnout.published_id k
          set source = publish_once.source, type = p.type, version = p.version, topic = p.topic, key = p.key, seq = p.seq::bigint,
              xid = pg_current_xact_id(), occurred_at = p.occurred_at, routes = p.routes, stamps = p.stamps
          from published p where k.id = p.id and k.id = any (claimed)
      )
      select places[p.nth], p.seq, p.id, p.type, p.version, p.topic, p.key, p.occurred_at, p.routes, p.stamps, false, null::json, null::jsonb
      from published p;
  end if;
  if cardinality(claimed) < cardinality(ids) then
    return query
      select e.place, k.seq::text, k.id, k.type, k.version, k.topic, k.key, k.occurred_at, k.routes, k.stamps, true, o.payload, o.headers
      from rows from (json_to_recordset(publish_once.events) as (id uuid)) with ordinality as e (id, place)
      join turnout.published_id k on k.id = e.id
      left join turnout.outbox o on o.xid = k.xid and o.seq = k.seq
      where k.id <> all (claimed);
  end if;
end
$$;

-- Publishes one event; gives its id. With an `id` of the caller's choice it is published once, however often this is called.
create or replace function turnout.publish(source text, type text, version integer, key text, data json,
                                           headers jsonb default null, switchovers text[] default '{}', id uuid default null)
returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  event constant json := json_build_array(json_build_object('id', publish.id, 'type', publish.type, 'version', publish.version,
                                                            'key', publish.key, 'data', publish.data, 'headers', publish.headers));
begin
  if publish.id is null then
    return (select p.id from turnout.publish_events(publish.source, event, publish.switchovers) p);
  end if;
  return (select p.id from turnout.publish_once(publish.source, event, publish.switchovers) p);
end
$$;

-- Forgets ids that were claimed longer ago than that, except while a call is owed for them; at most `most`, returns how many.
-- Whoever publishes one of them afterwards publishes a new event.
create function turnout.delete_old_published_ids(older_than interval, most integer default 5000)
returns integer
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
declare
  deleted integer;
begin
  delete from turnout.published_id k
    where k.id in (
      select o.id from turnout.published_id o
      where o.claimed_at < clock_timestamp() - delete_old_published_ids.older_than
        and not exists (select from jsonb_array_elements(o.stamps) s join turnout.rpc_delivery d on d.effect_key = s ->> 'effectKey')
      order by o.claimed_at limit delete_old_published_ids.most);
  get diagnostics deleted = row_count;
  return deleted;
end
$$;

revoke all on turnout.published_id from public;
revoke all on function turnout.publish_once(text, json, text[], boolean) from public;
revoke all on function turnout.delete_old_published_ids(interval, integer) from public;
