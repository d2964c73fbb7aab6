import type { Database, Session } from '../database/index.ts';
import { isTurnoutError } from '../errors/index.ts';
import { sleep } from '../lifecycle/index.ts';

/** A session that is kept alive: whatever the relay waits for, the server sees a statement of it every now and then. */
export interface LiveSession {
  /** The same session. Its statements wait for each other, so that the heartbeat may come at any time. */
  readonly session: Session;
  /** Aborted when the connection is lost, or the server doesn't answer on it any more. */
  readonly lost: AbortSignal;
  /** Ends the heartbeat. */
  stop(): void;
}

/**
 * Runs a statement of no effect four times in each `takeoverMs`, which standbys take as a sign of life (a running statement is another).
 * If none is answered in `takeoverMs`, the server is asked over another connection whether it is still at work for this one: a long poll
 * is waited for, and a connection that leads nowhere, which TCP would notice in a quarter of an hour, is given up.
 */
export function keepAlive(session: Session, database: Database, takeoverMs: number): LiveSession {
  const lost = new AbortController();
  const stopped = new AbortController();
  void session.lost.then(() => lost.abort());
  let turn: Promise<unknown> = Promise.resolve();
  let backend: string | undefined;

  function inTurn<Result>(run: () => Promise<Result>): Promise<Result> {
    const result = turn.then(run);
    turn = result.catch(() => undefined);
    return result;
  }

  const inTurns: Session = {
    lost: session.lost,
    query: (text, values) => inTurn(() => session.query(text, values)),
    queryText: (text, values) => inTurn(() => session.queryText(text, values)),
    release: (destroy) => session.release(destroy),
  };

  async function beat(): Promise<void> {
    const [row] = await inTurns.queryText('select pg_backend_pid()');
    backend = row?.[0] ?? undefined;
  }

  /** Asked of the server, since a long statement and a dead connection look alike from here. */
  async function isAtWork(): Promise<boolean> {
    try {
      const { rows } = await database.query(
        `select from pg_stat_activity a where a.pid = $1::integer and a.state in ('active', 'disabled')`,
        [backend ?? '0'],
      );
      return rows.length > 0;
    } catch (error) {
      // All connections are taken: that says nothing of this one.
      return isTurnoutError(error, 'TURNOUT_POOL_TIMEOUT');
    }
  }

  void (async () => {
    do {
      const beaten = beat().then(
        () => true,
        // The session tells by itself when it is lost.
        () => true,
      );
      while (!(await within(beaten, takeoverMs, stopped.signal)) && !stopped.signal.aborted) {
        // With the defaults, longer than a pool is given for a connection.
        if (await within(isAtWork(), takeoverMs * 1.5, stopped.signal)) continue;
        // The answer may have come while the question was on its way.
        if (stopped.signal.aborted || (await within(beaten, takeoverMs / 4, stopped.signal))) break;
        lost.abort();
        // Statements that wait for an answer reject now.
        session.release(true);
        return;
      }
    } while (await sleep(takeoverMs / 4, AbortSignal.any([stopped.signal, lost.signal])));
  })();

  return { session: inTurns, lost: lost.signal, stop: () => stopped.abort() };
}

/** Whether `question` comes out true within `ms`, before `signal` is aborted. */
async function within(question: Promise<boolean>, ms: number, signal: AbortSignal): Promise<boolean> {
  const over = new AbortController();
  try {
    return await Promise.race([question, sleep(ms, AbortSignal.any([signal, over.signal])).then(() => false)]);
  } finally {
    over.abort();
  }
}
