-- Keeping the outbox small: partitions are emptied as a whole, never deleted from.

-- The partitions of the outbox that no more numbers will be drawn for, oldest first.
create function turnout.closed_outbox_partitions()
returns table (name text, lower_seq bigint, upper_seq bigint)
language sql stable security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  select b.name, b.bound[1]::bigint, b.bound[2]::bigint
  from (select c.relname::text as name, regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''?(\d+)''?\) TO \(''?(\d+)''?\)') as bound
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'turnout.outbox'::regclass) b
  where b.bound[2]::bigint <= (select coalesce(s.last_value, 0) from pg_sequences s where s.schemaname = 'turnout' and s.sequencename = 'outbox_seq_seq')
  order by b.bound[2]::bigint
$$;

-- Why a closed partition stays as it is: 'empty' | 'young' | 'unpublished' | 'owed': calls still need its events; null if nothing does.
create function turnout.need_of_outbox_partition(name text, lower_seq bigint, upper_seq bigint, retention interval)
returns text
language plpgsql volatile set search_path = pg_catalog, turnout, pg_temp
as $$
#variable_conflict use_column
declare
  newest_at timestamptz;
  finished pg_snapshot;
  pending boolean;
begin
  execute format('select o.occurred_at from turnout.%I o order by o.xid desc limit 1', need_of_outbox_partition.name) into newest_at;
  if newest_at is null then
    return 'empty';
  end if;
  if newest_at > clock_timestamp() - retention then
    return 'young';
  end if;
  -- Its rows must be visible in the `lo` of every shard's newest tick, which is the oldest that may still be replayed.
  if not exists (select from turnout.relay_tick) then
    return 'unpublished';
  end if;
  for finished in select distinct on (t.shard) t.lo from turnout.relay_tick t order by t.shard, t.tick desc loop
    execute format('select exists (select from turnout.%I o where o.xid >= pg_snapshot_xmin($1) and not pg_visible_in_snapshot(o.xid, $1))',
                   need_of_outbox_partition.name) into pending using finished;
    if pending then
      return 'unpublished';
    end if;
  end loop;
  if exists (select from turnout.rpc_delivery d
             where d.seq >= need_of_outbox_partition.lower_seq and d.seq < need_of_outbox_partition.upper_seq) then
    return 'owed';
  end if;
  return null;
end
$$;

-- Empties one closed partition, if nothing needs it any more. Returns what happened:
-- 'emptied', 'busy': somebody writes or reads it, or why it stays: 'empty' | 'young' | 'unpublished' | 'owed'.
-- It looks first without the lock, since waiting for that holds up whoever comes after; and again under it: a transaction
-- that has drawn a number of this partition has then ended, or waits and inserts afterwards into a partition that is still
-- there. Looking only before would lose its event.
create function turnout.empty_outbox_partition(name text, retention interval)
returns text
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_column
declare
  range record;
  need text;
begin
  -- With a snapshot of before the lock, what was committed while it was waited for would be lost.
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'The outbox is kept in transactions that are read committed, not %.', current_setting('transaction_isolation');
  end if;
  select p.lower_seq, p.upper_seq into range from turnout.closed_outbox_partitions() p where p.name = empty_outbox_partition.name;
  if not found then
    raise exception '% is not a closed partition of turnout.outbox.', empty_outbox_partition.name;
  end if;
  need := turnout.need_of_outbox_partition(empty_outbox_partition.name, range.lower_seq, range.upper_seq, retention);
  if need is not null then
    return need;
  end if;
  begin
    execute format('lock table only turnout.%I in access exclusive mode', empty_outbox_partition.name);
  exception when lock_not_available then
    return 'busy';
  end;
  need := turnout.need_of_outbox_partition(empty_outbox_partition.name, range.lower_seq, range.upper_seq, retention);
  if need is not null then
    return need;
  end if;
  execute format('truncate only turnout.%I', empty_outbox_partition.name);
  return 'emptied';
end
$$;

-- Drops closed partitions that are empty, so that polls don't have ever more of them to look into. Returns how many went.
-- For a moment this locks the whole outbox, so it gives up at once while somebody publishes in a long transaction.
create function turnout.drop_empty_outbox_partitions()
returns integer
language plpgsql security definer set search_path = pg_catalog, turnout, pg_temp set lock_timeout = '50ms'
as $$
declare
  empty_names text[] := '{}';
  name text;
  filled boolean;
begin
  -- As above.
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'The outbox is kept in transactions that are read committed, not %.', current_setting('transaction_isolation');
  end if;
  for name in select p.name from turnout.closed_outbox_partitions() p loop
    execute format('select exists (select from turnout.%I)', name) into filled;
    if not filled then
      empty_names := empty_names || name;
    end if;
  end loop;
  if cardinality(empty_names) = 0 then
    return 0;
  end if;
  begin
    lock table turnout.outbox in access exclusive mode;
    foreach name in array empty_names loop
      -- Again, now that nobody can write: a row may have come in late.
      execute format('select exists (select from turnout.%I)', name) into filled;
      if filled then
        continue;
      end if;
      execute format('alter table turnout.outbox detach partition turnout.%I', name);
      execute format('drop table turnout.%I', name);
    end loop;
  exception when lock_not_available then
    return 0;
  end;
  return cardinality(empty_names);
end
$$;

-- Deletes at most so many old ticks; the newest thousand always stay. Returns how many went.
-- The fence doesn't need them: a relay that wakes inserts its next tick only if the newest is still the one it knows.
create function turnout.delete_old_ticks(older_than interval, most integer default 5000)
returns integer
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  with old as (
    select t.shard, t.tick from turnout.relay_tick t
    where t.tick < (select max(n.tick) - 1000 from turnout.relay_tick n where n.shard = t.shard) and t.at < clock_timestamp() - older_than
    order by t.shard, t.tick limit most
  ), gone as (
    delete from turnout.relay_tick t using old where t.shard = old.shard and t.tick = old.tick returning 1
  )
  select count(*)::integer from gone
$$;

-- Deletes at most so many stamps of one partition that was emptied. Returns how many went.
-- Not of all below it: an older partition may have stayed, because calls need its events, and they are found by their stamps.
-- Stamps are only appended, so the oldest are met first and a batch is small work.
create function turnout.delete_old_stamps(lower_seq bigint, upper_seq bigint, most integer default 5000)
returns integer
language sql volatile security definer set search_path = pg_catalog, turnout, pg_temp
as $$
  with gone as (
    delete from turnout.stamp s
    where s.ctid = any (array(select o.ctid from turnout.stamp o
                              where o.seq >= delete_old_stamps.lower_seq and o.seq < delete_old_stamps.upper_seq limit most)) returning 1
  )
  select count(*)::integer from gone
$$;

revoke all on all functions in schema turnout from public;
