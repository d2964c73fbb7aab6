-- Points that customers have, and how they came by them.
create table if not exists ledger (
  id          bigint generated always as identity primary key,
  customer_id text not null,
  change      integer not null,
  order_id    uuid not null,
  version     integer not null,
  points      integer not null,
  balance     integer not null,
  at          timestamptz not null default clock_timestamp()
);

create index if not exists ledger_customer on ledger (customer_id, id);
