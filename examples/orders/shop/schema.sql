create table if not exists customer (
  id      text primary key,
  email   text not null,
  -- Counts everything that happened to the customer's orders.
  changes integer not null default 0
);

create table if not exists "order" (
  id              uuid primary key,
  customer_id     text not null references customer,
  item            text not null,
  quantity        integer not null,
  total_cents     integer not null,
  status          text not null check (status in ('placed', 'cancelled')),
  -- Counts the changes of the order: 1 is its placing.
  version         integer not null,
  updated_at      timestamptz not null default clock_timestamp()
);
