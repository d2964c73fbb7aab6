// Many wait, one asks: a process has one query for all effects whose replies it waits for, at growing intervals. (LISTEN
// would need a NOTIFY in the transactions of those who answer, which serialises all commits.)
import type { Queryable } from '../../database/index.ts';
import { sleep } from '../../lifecycle/index.ts';
import type { Logger } from '../../lifecycle/index.ts';
import { readReplies } from './reply-store.ts';
import type { KnownReply } from './reply-store.ts';

/** Waits for replies on behalf of everybody in the process. */
export interface ReplyWaiter {
  /**
   * Resolves with the first reply that is there, by event or by call; undefined when `timeoutMs` are over and at once when
   * the waiter is closed. Looks at least once, whatever `timeoutMs` is. Never rejects: while the database is away it waits.
   */
  wait(effectKey: string, timeoutMs: number): Promise<KnownReply | undefined>;
  /** Lets everybody go who waits. */
  close(): void;
}

interface Waiting {
  readonly effectKey: string;
  readonly until: number;
  /** Whether it was asked for at least once. */
  asked: boolean;
  readonly resolve: (reply: KnownReply | undefined) => void;
}

const firstPauseMs = 10;
const longestPauseMs = 500;

export function replyWaiter({
  database,
  logger,
}: {
  readonly database: Queryable;
  readonly logger: Logger;
}): ReplyWaiter {
  const all = new Set<Waiting>();
  let closed = false;
  let looking = false;
  let newcomer = new AbortController();

  function release(waiting: Waiting, reply: KnownReply | undefined): void {
    all.delete(waiting);
    waiting.resolve(reply);
  }

  async function askForAll(): Promise<void> {
    const asked = [...all];
    const known = await readReplies(database, [...new Set(asked.map(({ effectKey }) => effectKey))]);
    const byKey = new Map(known.map((reply) => [reply.effectKey, reply]));
    for (const waiting of asked) {
      waiting.asked = true;
      const reply = byKey.get(waiting.effectKey);
      if (reply?.event !== undefined || reply?.call !== undefined) release(waiting, reply);
    }
  }

  /** Goes on for as long as somebody waits. */
  async function look(): Promise<void> {
    looking = true;
    for (let pauseMs = firstPauseMs; all.size > 0;) {
      try {
        await askForAll();
      } catch (error) {
        logger.warn('Replies could not be looked up; they are looked for again.', { waiting: all.size, error });
        for (const waiting of all) waiting.asked = true;
      }
      const now = performance.now();
      for (const waiting of all) if (waiting.asked && waiting.until <= now) release(waiting, undefined);
      if (all.size === 0) break;
      const soonest = Math.min(...[...all].map(({ until }) => until)) - now;
      newcomer = new AbortController();
      const slept = await sleep(Math.max(1, Math.min(pauseMs, soonest)), newcomer.signal);
      // Replies come soon or late: who has just begun to wait is asked for soon (with those who begin just after), and then ever more seldom.
      if (!slept && !closed) await sleep(firstPauseMs);
      pauseMs = slept ? Math.min(pauseMs * 1.5, longestPauseMs) : firstPauseMs;
    }
    looking = false;
  }

  return {
    wait(effectKey, timeoutMs) {
      if (closed) return Promise.resolve(undefined);
      return new Promise((resolve) => {
        all.add({ effectKey, until: performance.now() + timeoutMs, asked: false, resolve });
        if (looking) newcomer.abort();
        else void look();
      });
    },
    close() {
      closed = true;
      for (const waiting of all) release(waiting, undefined);
      newcomer.abort();
    },
  };
}
