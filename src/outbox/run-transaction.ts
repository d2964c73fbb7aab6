import type { Database } from '../database/index.ts';
import { TurnoutError } from '../errors/index.ts';
import { retryDelayMs, sleep } from '../lifecycle/index.ts';
import type { RetryPolicy } from '../lifecycle/index.ts';
import { sqlStateOf } from './publish.ts';

const policy: RetryPolicy = { attempts: 4, firstDelayMs: 10, maxDelayMs: 500 };

/**
 * Runs `work` in a transaction, and from its start again if Postgres says that another attempt may succeed: a deadlock
 * (40P01), a serialization failure (40001), or a switchover that was closed while the transaction was open. Everything
 * that `work` does outside the database must bear being repeated. `attempts` (default 4) counts the first.
 *
 * A COMMIT whose answer was lost is never repeated: TURNOUT_COMMIT_UNKNOWN.
 */
export async function runTransaction<Tx, Result>(
  database: Database<Tx>,
  work: (tx: Tx) => Promise<Result>,
  options: { attempts?: number } = {},
): Promise<Result> {
  const attempts = Math.max(1, options.attempts ?? policy.attempts);
  for (let attempt = 1; ; attempt++) {
    try {
      return await database.transaction(work);
    } catch (error) {
      if (attempt >= attempts || !mayBeRepeated(error)) throw error;
      await sleep(retryDelayMs(policy, attempt, Math.random()));
    }
  }
}

/**
 * Whether a transaction that failed with this error may succeed when it is run again from its start: for transactions
 * of your own, which `turnout.transaction()` doesn't run.
 *
 * @example
 * try {
 *   await dataSource.transaction(placeOrder);
 * } catch (error) {
 *   if (!mayBeRepeated(error)) throw error;
 *   await dataSource.transaction(placeOrder);
 * }
 */
export function mayBeRepeated(error: unknown): boolean {
  const state = sqlStateOf(error);
  if (state === '40P01' || state === '40001') return true;
  // `done` deletes the rows that stamped calls refer to; who still stamped one reads the new stage next time.
  return state === '23503' && constraintOf(error) === 'rpc_delivery_open';
}

function constraintOf(error: unknown): unknown {
  if (typeof error !== 'object' || error === null) return undefined;
  const { constraint, driverError, cause } = error as { constraint?: unknown; driverError?: unknown; cause?: unknown };
  return constraint ?? constraintOf(driverError) ?? (error instanceof TurnoutError ? constraintOf(cause) : undefined);
}
