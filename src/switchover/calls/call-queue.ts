import type { Queryable } from '../../database/index.ts';
import type { Logger } from '../../lifecycle/index.ts';
import { deliverCall } from './deliver-call.ts';
import type { CallRetryPolicy, Delivered, OwedCall } from './deliver-call.ts';

/** Makes the calls of a publishing process, right after their commits. */
export interface CallQueue {
  /**
   * Makes a call as soon as a place is free and, if it has a turn, the calls of its key that were added before are over.
   * What can't start within its time-out is left to the sweeper.
   */
  add(owed: OwedCall): Added;
  /** Resolves when the calls in flight are over; those that wait are left to the sweeper, and so is what is added later. */
  close(): Promise<void>;
}

/** Neither rejects. */
export interface Added {
  /** How the call ended. */
  readonly answered: Promise<Delivered>;
  /** Resolves when that is written down too, a moment later. */
  readonly over: Promise<void>;
}

export interface CallQueueOptions {
  readonly database: Queryable;
  readonly logger: Logger;
  readonly retry: CallRetryPolicy;
  /** How many calls are in flight at most. */
  readonly concurrency: number;
  /** How many wait at most; with a callee that hangs, they would fill the memory. */
  readonly maxWaiting: number;
}

interface Waiting {
  readonly owed: OwedCall;
  readonly lane: string | undefined;
  readonly since: number;
  readonly answered: (delivered: Delivered) => void;
  readonly over: () => void;
}

export function callQueue({ database, logger, retry, concurrency, maxWaiting }: CallQueueOptions): CallQueue {
  const waiting: Waiting[] = [];
  const busyLanes = new Set<string>();
  const inFlight = new Set<Promise<void>>();
  let closed = false;

  function startMore(): void {
    for (let index = 0; index < waiting.length && inFlight.size < concurrency;) {
      const next = waiting[index]!;
      if (next.lane !== undefined && busyLanes.has(next.lane)) {
        index++;
        continue;
      }
      waiting.splice(index, 1);
      if (performance.now() - next.since > next.owed.switchover.timeoutMs)
        leave(next, 'it waited too long for its turn');
      else start(next);
    }
  }

  function start({ owed, lane, answered, over }: Waiting): void {
    if (lane !== undefined) busyLanes.add(lane);
    const patienceMs = owed.switchover.timeoutMs;
    const call = deliverCall(owed, { database, logger, retry, patienceMs, answered }).then((delivered) => {
      // The next call of its key comes only now: an endpoint behind a bridge goes by the rows.
      if (lane !== undefined) busyLanes.delete(lane);
      inFlight.delete(call);
      answered(delivered);
      over();
      startMore();
    });
    inFlight.add(call);
  }

  return {
    add(owed) {
      const answered = deferred<Delivered>();
      const over = deferred<void>();
      const lane = owed.turn === undefined ? undefined : `${owed.switchover.name}\0${owed.event.key}`;
      const next = { owed, lane, since: performance.now(), answered: answered.resolve, over: over.resolve };
      if (closed) leave(next, 'this process is closing');
      else if (waiting.length >= maxWaiting) leave(next, 'too many calls wait in this process');
      else {
        waiting.push(next);
        startMore();
      }
      return { answered: answered.promise, over: over.promise };
    },
    async close() {
      closed = true;
      for (const next of waiting.splice(0)) leave(next, 'this process is closing');
      await Promise.all(inFlight);
    },
  };
}

function leave({ answered, over }: Waiting, why: string): void {
  answered({ kind: 'pending', why: `left to the sweeper: ${why}` });
  over();
}

function deferred<Value>(): { readonly promise: Promise<Value>; readonly resolve: (value: Value) => void } {
  let resolve!: (value: Value) => void;
  const promise = new Promise<Value>((yes) => {
    resolve = yes;
  });
  return { promise, resolve };
}
