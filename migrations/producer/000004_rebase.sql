-- After a database was put back to an earlier state, or copied into another cluster: numbers start again, in a new generation.

create table turnout.rebase (
  id     bigint generated always as identity primary key,
  reason text not null check (length(trim(reason)) > 0),
  -- Whether transaction numbers of another cluster were replaced, and so everything in the outbox is published again.
  copied boolean not null,
  actor  text not null default session_user,
  at     timestamptz not null default clock_timestamp()
);

-- Gives every source of the database its next generation, in which the relay counts from 1. Refused while a relay leads.
--
-- If the database was copied (pg_dump and restore, logical replication), its rows carry transaction numbers of the other cluster, which
-- say nothing here: those that this cluster may still give out are replaced by that of this transaction, and the relay begins anew, with
-- everything that is in the outbox. So what was published before is published again; consumers know it by its effect key.
create function turnout.rebase_relay(reason text)
returns table (source text, generation integer, copied boolean)
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  newest turnout.relay_tick;
  -- Numbers from here on may be given out again, or are in use.
  unsettled xid8;
  is_copy boolean;
begin
  if coalesce(trim(rebase_relay.reason), '') = '' then
    raise exception 'A rebase needs a reason.' using errcode = 'TU012';
  end if;
  -- The lock of the relay that leads; held to the end of the transaction, so that none begins to lead meanwhile.
  if not pg_try_advisory_xact_lock(hashtext('turnout.relay'), 0) then
    raise exception 'A relay leads.' using errcode = 'TU019';
  end if;
  select * into newest from turnout.relay_tick t where t.shard = 0 order by t.tick desc limit 1;
  select pg_snapshot_xmin(pg_current_snapshot()) into unsettled;
  -- The same question as the relay's when it starts to lead (src/relay/checks.ts).
  select pg_snapshot_xmax(t.hi) > pg_snapshot_xmax(pg_current_snapshot())
      or (t.hi::text <> '1:1:'
        and (t.xmin::text::bigint - pg_snapshot_xmax(t.hi)::text::bigint % 4294967296 + 4294967296) % 4294967296 >= 2147483648)
    into is_copy
    from turnout.relay_tick t where t.shard = 0 and t.tick = newest.tick;
  is_copy := coalesce(is_copy, false)
    or exists (select from turnout.outbox o where o.xid >= pg_snapshot_xmax(pg_current_snapshot()));
  if is_copy then
    with moved as (
      update turnout.outbox o set xid = pg_current_xact_id() where o.xid >= unsettled returning o.seq
    ), stamps as (
      update turnout.stamp s set xid = pg_current_xact_id() from moved m where s.seq = m.seq
    )
    update turnout.rpc_delivery d set xid = pg_current_xact_id() from moved m where d.seq = m.seq;
    update turnout.switchover s set created_xid = pg_current_xact_id() where s.created_xid >= unsettled;
    -- A closed tick before everything. Its number goes on, so that a relay that was paused can't write behind it.
    insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay)
      values (0, coalesce(newest.tick, 0) + 1, '1:1:', '1:1:', '{}', 'rebase');
  end if;
  insert into turnout.rebase (reason, copied) values (rebase_relay.reason, is_copy);
  return query
    update turnout.source s set generation = s.generation + 1 returning s.name, s.generation, is_copy;
end
$$;

revoke all on turnout.rebase from public;
revoke all on function turnout.rebase_relay(text) from public;
