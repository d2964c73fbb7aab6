-- What decides about a promotion, at the consumer: who still calls without Turnout, and indexes and functions that let
-- `consumerEvidence` count what is new without reading an inbox of years.

-- Block ranges: outcomes come in the order of their time, so an index of a few pages finds the newest ones, and costs a write next to
-- nothing. New partitions get it when they are attached.
create index inbox_finished on turnout.inbox using brin (finished_at) with (pages_per_range = 16, autosummarize = on);
create index inbox_dead on turnout.inbox (consumer, finished_at) where outcome = 'dead';
create index held_oldest on turnout.held (consumer, id);
create index held_parked on turnout.held (consumer, held_at) where reason = 'parked';
create index held_waiting on turnout.held (consumer, held_at) where reason <> 'parked';
-- Of which switchover it is. Null where the message is kept as bytes: that one counts for every switchover.
alter table turnout.held add column event_type text generated always as (message #>> '{headers,ce_type}') stored;

-- An alarm counts against a promotion until somebody has looked: turnout.see_alarms.
alter table turnout.alarm add column seen_at timestamptz, add column seen_by text, add column seen_reason text;
create index alarm_unseen on turnout.alarm (consumer, kind, at) where seen_at is null;

-- Who called an endpoint without Turnout's headers. Whoever stands here would break when the endpoint is deleted.
create table turnout.unknown_caller (
  consumer text not null,
  endpoint text not null, -- as the adapter tells it, such as 'POST /confirmations'; '' if it doesn't
  service  text not null, -- as the endpoint's caller() or the user agent tells it; '' if neither does
  address  text not null, -- '' if the adapter doesn't tell it
  calls    bigint not null,
  first_at timestamptz not null,
  last_at  timestamptz not null,
  primary key (consumer, endpoint, service, address)
) with (fillfactor = 70);

-- When each endpoint was last called with Turnout's headers (keyed), and without (unkeyed). Nothing is known of the time before it was
-- seen first: an endpoint that is wrapped since yesterday has not been without callers for a week.
create table turnout.endpoint_seen (
  consumer   text not null,
  endpoint   text not null,
  first_at   timestamptz not null default clock_timestamp(),
  keyed_at   timestamptz,
  unkeyed_at timestamptz,
  primary key (consumer, endpoint)
) with (fillfactor = 70);

-- Adds what a wrapped endpoint has counted in memory since it last did so.
--   callers    [{"endpoint", "service", "address", "calls", "ageMs"}]: calls without headers, the newest `ageMs` ago
--   endpoints  [{"endpoint", "keyedAgeMs"?, "unkeyedAgeMs"?}]
-- Ages, not times: no clock but the database's counts. Addresses that change with every deploy must not fill the table: a consumer
-- has 5,000 rows at most, and what comes then is counted as one caller.
create function turnout.record_callers(consumer text, callers jsonb, endpoints jsonb)
returns void
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '1s'
as $$
#variable_conflict use_column
declare
  is_full boolean;
begin
  select count(*) >= 5000 into is_full
    from (select from turnout.unknown_caller u where u.consumer = record_callers.consumer limit 5000) u;
  insert into turnout.unknown_caller as u (consumer, endpoint, service, address, calls, first_at, last_at)
    select record_callers.consumer, g.endpoint, g.service, g.address, sum(g.calls), min(g.at), max(g.at)
    from (
      select c.endpoint, case when known then c.service else '(others)' end as service,
             case when known then c.address else '(others)' end as address, c.calls,
             clock_timestamp() - make_interval(secs => c."ageMs" / 1000) as at
      from jsonb_to_recordset(record_callers.callers) as c (endpoint text, service text, address text, calls bigint, "ageMs" float8)
      cross join lateral (
        select not is_full or exists (select from turnout.unknown_caller k
          where k.consumer = record_callers.consumer and k.endpoint = c.endpoint and k.service = c.service and k.address = c.address) as known
      ) k
    ) g
    group by g.endpoint, g.service, g.address
    order by g.endpoint, g.service, g.address
    on conflict (consumer, endpoint, service, address) do update
      set calls = u.calls + excluded.calls, last_at = greatest(u.last_at, excluded.last_at);
  select count(*) >= 5000 into is_full
    from (select from turnout.endpoint_seen e where e.consumer = record_callers.consumer limit 5000) e;
  insert into turnout.endpoint_seen as e (consumer, endpoint, keyed_at, unkeyed_at)
    select record_callers.consumer, s.endpoint, clock_timestamp() - make_interval(secs => s."keyedAgeMs" / 1000),
           clock_timestamp() - make_interval(secs => s."unkeyedAgeMs" / 1000)
    from jsonb_to_recordset(record_callers.endpoints) as s (endpoint text, "keyedAgeMs" float8, "unkeyedAgeMs" float8)
    where not is_full or exists (select from turnout.endpoint_seen k where k.consumer = record_callers.consumer and k.endpoint = s.endpoint)
    order by s.endpoint
    on conflict (consumer, endpoint) do update
      set keyed_at = greatest(e.keyed_at, excluded.keyed_at), unkeyed_at = greatest(e.unkeyed_at, excluded.unkeyed_at);
end
$$;

-- Outcomes of the last while, by path; of one source and some event types, if they are named. Of each path `most` are counted at most, of
-- what was asked for and not of what lies beside it: it costs the same on an inbox of any size.
-- Only bitmap scans: a plan by the primary key, tempting with a limit, would read all that the consumer ever had.
-- statement_timestamp(), since an index can't be searched by a clock that moves while it is.
create function turnout.recent_outcomes(consumer text, within_time interval, most integer default 100000, source text default null,
                                        event_types text[] default null)
returns table (path text, outcome text, effects bigint, newest timestamptz)
language sql stable security definer set search_path = pg_catalog, turnout, pg_temp
  set enable_seqscan = off set enable_indexscan = off set enable_indexonlyscan = off set max_parallel_workers_per_gather = 0
as $$
  select r.path, r.outcome, count(*), max(r.finished_at)
  from (values ('rpc'), ('event')) as p (path)
  cross join lateral (
    select i.path, i.outcome, i.finished_at from turnout.inbox i
    where i.consumer = recent_outcomes.consumer and i.finished_at > statement_timestamp() - recent_outcomes.within_time
      and i.path = p.path
      and (recent_outcomes.source is null or i.source = recent_outcomes.source)
      and (recent_outcomes.event_types is null or i.event_type = any (recent_outcomes.event_types))
    limit recent_outcomes.most
  ) r
  group by r.path, r.outcome
$$;

-- Says that somebody has looked at the alarms of a consumer up to `up_to` (turnout.alarm.id): they count no more against a promotion.
create function turnout.see_alarms(consumer text, up_to bigint, reason text)
returns integer -- how many
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  seen integer;
begin
  if coalesce(trim(see_alarms.reason), '') = '' then
    raise exception 'To pass over alarms needs a reason.' using errcode = 'TU012', detail = json_build_object('consumer', see_alarms.consumer)::text;
  end if;
  update turnout.alarm a set seen_at = clock_timestamp(), seen_by = session_user, seen_reason = see_alarms.reason
    where a.consumer = see_alarms.consumer and a.id <= see_alarms.up_to and a.seen_at is null;
  get diagnostics seen = row_count;
  return seen;
end
$$;

revoke all on table turnout.unknown_caller, turnout.endpoint_seen from public;
revoke all on function turnout.record_callers(text, jsonb, jsonb), turnout.recent_outcomes(text, interval, integer, text, text[]),
  turnout.see_alarms(text, bigint, text) from public;
