-- For proxies in front of callers that nobody can change: what has become of a call that named an idempotency key.

-- Written with the event, in one transaction, so that a caller's retry is found and is no second event.
create table turnout.proxied_call (
  -- Of the event: made of the caller's key.
  id           uuid primary key,
  source       text not null references turnout.source,
  -- Of the request: the same key with another one is refused.
  request_hash text not null,
  route        text not null check (route in ('rpc', 'event')),
  effect_key   text not null,
  -- Of the event.
  key          text,
  -- {"status", "headers", "body"} of the endpoint, for a retry; null while it has not answered, and if its answer was lost or too large.
  answer       jsonb,
  at           timestamptz not null default clock_timestamp()
);

-- Proxies delete what is older than they keep.
create index proxied_call_at on turnout.proxied_call (source, at);

revoke all on turnout.proxied_call from public;
