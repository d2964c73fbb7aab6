import { sleep } from '../lifecycle/index.ts';
import type { Session } from '../database/index.ts';
import { beginning, hasWork, readNewestTick } from './tick-store.ts';

// Two-number advisory locks of one database: "turnout relay" and the shard.
const lock = `hashtext('turnout.relay'), 0`;

/** What a standby sees when it looks. */
export interface Observation {
  readonly atMs: number;
  /** The newest tick, 0 if there is none. */
  readonly tick: bigint;
  /** The backend that holds the lock; undefined if nobody does. */
  readonly holder: string | undefined;
  /** Whether something is to be done: the newest tick isn't closed, or more has become visible since. */
  readonly work: boolean;
  /** Changes with every statement of the holder. */
  readonly statement: string | undefined;
  /** Whether the server is at work for the holder, and not waiting for it to take rows off its hands. */
  readonly running: boolean;
}

/** Since when a standby has seen no sign of life, and whose. */
export interface Watch {
  readonly tick: bigint;
  readonly holder: string | undefined;
  readonly statement: string | undefined;
  readonly sinceMs: number;
}

/**
 * What a standby thinks after looking again: a leader is given `takeoverMs` for a sign of life, which is a new tick or any statement
 * (see {@link keepAlive}). One that is alive is never followed, however slow the broker is: its follower would be no faster. A leader without
 * work owes none; another holder of the lock starts afresh.
 */
export function observe(
  watch: Watch | undefined,
  seen: Observation,
  takeoverMs: number,
): { watch: Watch; takeOver: boolean } {
  const { tick, holder, statement } = seen;
  const same = watch !== undefined && watch.tick === tick && watch.holder === holder && watch.statement === statement;
  if (!same || seen.running || !seen.work || holder === undefined) {
    return { watch: { tick, holder, statement, sinceMs: seen.atMs }, takeOver: false };
  }
  return { watch, takeOver: seen.atMs - watch.sinceMs >= takeoverMs };
}

/**
 * Waits, standing by, until this session holds the lock; gives false if `signal` was aborted first.
 * `standingBy` is called once if somebody else leads.
 */
export async function becomeLeader(
  session: Session,
  options: {
    takeoverMs: number;
    signal: AbortSignal;
    standingBy: () => void;
    ending: (holder: string, tick: bigint) => void;
    mayNotEnd: (error: unknown) => void;
  },
): Promise<boolean> {
  const pollMs = Math.max(20, Math.min(250, options.takeoverMs / 4));
  let watch: Watch | undefined;
  for (let first = true; !options.signal.aborted; first = false) {
    const [row] = await session.queryText(`select pg_try_advisory_lock(${lock})`);
    if (row?.[0] === 't') return true;
    if (first) options.standingBy();
    const seen = await look(session);
    const decision = observe(watch, seen, options.takeoverMs);
    watch = decision.watch;
    if (decision.takeOver && seen.holder !== undefined && seen.statement === undefined) {
      // Another role's, or nobody is told: ending what may be alive would end it again and again.
      options.mayNotEnd(undefined);
      watch = undefined;
    } else if (decision.takeOver && seen.holder !== undefined) {
      options.ending(seen.holder, seen.tick);
      await session.queryText('select pg_terminate_backend($1::integer)', [seen.holder]).catch((error: unknown) => {
        // Another role's: standing by goes on, and so does the leader, if it lives.
        if ((error as { code?: unknown }).code !== '42501') throw error;
        options.mayNotEnd(error);
        watch = undefined;
      });
      // The lock is free as soon as the backend has gone, which takes a moment.
      await sleep(10, options.signal);
      continue;
    }
    await sleep(pollMs, options.signal);
  }
  return false;
}

async function look(session: Session): Promise<Observation> {
  const newest = await readNewestTick(session);
  const open = newest !== undefined && newest.lo !== newest.hi;
  const [found] = await session.queryText(
    `select l.pid, a.state, a.state_change, a.wait_event_type is not distinct from 'Client'
      from pg_locks l left join pg_stat_activity a on a.pid = l.pid
      where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.classid::bigint = hashtext('turnout.relay')::bigint & 4294967295 and l.objid = 0`,
  );
  const [holder, state, statement, waiting] = found ?? [];
  return {
    atMs: performance.now(),
    tick: newest?.tick ?? 0n,
    holder: holder ?? undefined,
    work: open || (await hasWork(session, newest?.hi ?? beginning)),
    statement: statement ?? undefined,
    running: state === 'active' && waiting === 'f',
  };
}
