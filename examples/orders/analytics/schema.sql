-- Everything that ever happened to an order, for questions that nobody has thought of yet.
create table if not exists fact (
  id          bigint generated always as identity primary key,
  event_id    uuid not null,
  kind        text not null,
  order_id    uuid not null,
  version     integer not null,
  customer_id text not null,
  change      integer not null,
  total_cents integer not null,
  happened_at timestamptz not null
);
