-- For proxies in front of callers that nobody can change: what has become of a call that named an idempotency key.

-- Written with the event, in one transaction, so that a caller's retry is found and is no second event.
create table turnout.proxied_call (
  source       text not null references turnout.source,
  proxy        text not null,
  -- Of route, scope and the caller's key.
  key_hash     text not null,
  -- Of the request: the same key with another one is refused.
  request_hash text not null,
  -- Drawn anew with each record: a key that was forgotten makes a new event, not the old one again.
  event_id     uuid not null,
  event_key    text,
  effect_key   text not null,
  route        text not null check (route in ('rpc', 'event')),
  -- Of the call, when it is over.
  outcome      text check (outcome in ('applied', 'rejected', 'skipped', 'dead', 'duplicate')),
  -- {"status", "headers", "body"} of the endpoint, for a retry; without "body" if that was too large.
  answer       json,
  at           timestamptz not null default clock_timestamp(),
  settled_at   timestamptz,
  primary key (source, proxy, key_hash)
);

create unique index proxied_call_effect on turnout.proxied_call (effect_key);
-- Each proxy deletes what is older than it keeps.
create index proxied_call_at on turnout.proxied_call (source, proxy, at);

-- As in 000006, and for callers of proxies: a retry is told what the endpoint has said, whoever heard it.
create or replace function turnout.settle_call(effect_key text, outcome text, answer json)
returns void
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  with settled as (
    delete from turnout.rpc_delivery d where d.effect_key = settle_call.effect_key
  ), told as (
    -- Without an outcome it came as an event before: the effect is had, and nobody has heard the endpoint.
    update turnout.proxied_call p
      set outcome = coalesce(settle_call.outcome, 'duplicate'), answer = settle_call.answer, settled_at = clock_timestamp()
      where p.effect_key = settle_call.effect_key and p.outcome is null
  )
  update turnout.reply r
    set outcome = settle_call.outcome, settled_at = coalesce(r.settled_at, clock_timestamp()),
        answer = case when settle_call.answer -> 'body' is null then null
                      else json_build_object('status', settle_call.answer -> 'status', 'body', settle_call.answer -> 'body') end
    where r.effect_key = settle_call.effect_key and r.outcome is null and settle_call.outcome is not null
$$;

-- Forgets the keys of a proxy's callers that are older than that, at most `most`; returns how many. What is owed, or was never answered
-- as far as anybody knows, is kept: forgotten, a retry would be a second call.
create function turnout.forget_proxied_calls(source text, proxy text, older_than interval, most integer)
returns integer
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
declare
  deleted integer;
begin
  delete from turnout.proxied_call p
    where (p.source, p.proxy, p.key_hash) in (
      select o.source, o.proxy, o.key_hash from turnout.proxied_call o
      where o.source = forget_proxied_calls.source and o.proxy = forget_proxied_calls.proxy
        and o.at < clock_timestamp() - forget_proxied_calls.older_than
        and (o.settled_at is null or o.settled_at < clock_timestamp() - forget_proxied_calls.older_than)
        and (o.route = 'event' or o.outcome is not null)
        and not exists (select from turnout.rpc_delivery d where d.effect_key = o.effect_key)
      order by o.at limit forget_proxied_calls.most);
  get diagnostics deleted = row_count;
  return deleted;
end
$$;

revoke all on turnout.proxied_call from public;
revoke all on function turnout.forget_proxied_calls(text, text, interval, integer) from public;
