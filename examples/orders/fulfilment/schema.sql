-- What the warehouse does, in the order in which it was told.
create table if not exists shipment_step (
  id          bigint generated always as identity primary key,
  order_id    uuid not null,
  version     integer not null,
  customer_id text not null,
  change      integer not null,
  step        text not null check (step in ('pack', 'repack', 'stop')),
  quantity    integer not null,
  at          timestamptz not null default clock_timestamp()
);
