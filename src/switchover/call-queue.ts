import type { Queryable } from '../database/index.ts';
import type { Logger } from '../lifecycle/index.ts';
import { deliverCall } from './deliver-call.ts';
import type { CallRetryPolicy, Delivered, OwedCall } from './deliver-call.ts';

/** Makes the calls of a publishing process, right after their commits. */
export interface CallQueue {
  /**
   * Makes a call as soon as a place is free and, if it has a turn, the calls of its key that were added before are over.
   * Resolves with how it ended; never rejects. What can't start within its time-out is left to the sweeper.
   */
  add(owed: OwedCall): Promise<Delivered>;
  /** Resolves when the calls in flight are over; those that wait are left to the sweeper, and so is what is added later. */
  close(): Promise<void>;
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
  readonly resolve: (delivered: Delivered) => void;
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
        next.resolve(leftToSweeper('it waited too long for its turn'));
      else start(next);
    }
  }

  function start({ owed, lane, resolve }: Waiting): void {
    if (lane !== undefined) busyLanes.add(lane);
    const call = deliverCall(owed, { database, logger, retry, patienceMs: owed.switchover.timeoutMs }).then(
      (delivered) => {
        if (lane !== undefined) busyLanes.delete(lane);
        inFlight.delete(call);
        resolve(delivered);
        startMore();
      },
    );
    inFlight.add(call);
  }

  return {
    add(owed) {
      if (closed) return Promise.resolve(leftToSweeper('this process is closing'));
      if (waiting.length >= maxWaiting) return Promise.resolve(leftToSweeper('too many calls wait in this process'));
      const lane = owed.turn === undefined ? undefined : `${owed.switchover.name}\0${owed.event.key}`;
      return new Promise((resolve) => {
        waiting.push({ owed, lane, since: performance.now(), resolve });
        startMore();
      });
    },
    async close() {
      closed = true;
      for (const { resolve } of waiting.splice(0)) resolve(leftToSweeper('this process is closing'));
      await Promise.all(inFlight);
    },
  };
}

function leftToSweeper(why: string): Delivered {
  return { kind: 'pending', why: `left to the sweeper: ${why}` };
}
