import type { Queryable } from '../database/index.ts';

/** How the relay of a database stands. An idle one writes nothing: whether it lives is told by its lock, not by its last tick. */
export interface RelayStatus {
  /** Sessions of relays: the leader and those that stand by. */
  readonly relays: number;
  /** Whether a relay holds the lock of the leader. */
  readonly leading: boolean;
  /** Since its last statement, in seconds; null: nobody leads, or this role may not see it. */
  readonly secondsSinceSignOfLife: number | null;
  /** The relay that wrote the last tick. */
  readonly lastRelay: string | null;
  readonly secondsSinceTick: number | null;
  /** Whether something is to be published that no tick covers yet. */
  readonly unpublished: boolean;
}

/**
 * Reads how the relay of a database stands; costs the same on an outbox of any size.
 *
 * @example
 * const { leading, unpublished } = await relayStatus(database);
 */
export async function relayStatus(database: Queryable): Promise<RelayStatus> {
  // The lock as in leadership.ts. Locks are seen by every role, what others' sessions do only by some.
  const { rows } = await database.query<RelayStatus>(
    `with newest as materialized (
       select t.relay, t.at, t.hi, t.lo::text <> t.hi::text as open from turnout.relay_tick t where t.shard = 0 order by t.tick desc limit 1
     ), leader as materialized (
       select l.pid from pg_locks l
        where l.locktype = 'advisory' and l.granted and l.objsubid = 2
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
          and l.classid::bigint = hashtext('turnout.relay')::bigint & 4294967295 and l.objid = 0
        limit 1
     )
     select greatest((select count(*) from leader),
                     (select count(*) from pg_stat_activity a
                       where a.datname = current_database() and a.application_name = 'turnout relay'))::int as relays,
            exists (select from leader) as leading,
            (select greatest(0, round(extract(epoch from clock_timestamp() - a.state_change)))::int
               from leader l join pg_stat_activity a on a.pid = l.pid) as "secondsSinceSignOfLife",
            (select n.relay from newest n) as "lastRelay",
            (select greatest(0, round(extract(epoch from clock_timestamp() - n.at)))::int from newest n) as "secondsSinceTick",
            coalesce((select n.open from newest n), false)
              or exists (select from turnout.outbox o
                          where o.xid >= coalesce((select pg_snapshot_xmax(n.hi) from newest n), '0'::xid8)) as unpublished`,
  );
  return rows[0]!;
}
