-- What a mail server is to send. Nothing here keeps an order from being mailed twice: Turnout does.
create table if not exists mail (
  id          bigint generated always as identity primary key,
  order_id    uuid not null,
  recipient   text not null,
  subject     text not null,
  text        text not null,
  queued_at   timestamptz not null default clock_timestamp()
);
