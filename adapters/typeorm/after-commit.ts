import type { ClientLike } from '../../src/database/index.ts';
import { hasFailed } from '../../src/database/index.ts';
import { TurnoutError } from '../../src/errors/index.ts';
import type { DataSourceLike, QueryRunnerLike } from './types.ts';

// TypeORM tells subscribers of every commit and rollback, also of the savepoints that nested transactions are. A
// registration therefore remembers how deep it was made: it moves up when that level is released, is told of a rollback
// of its own or a higher level, and of a commit only when the outermost level is.

interface Registration {
  depth: number;
  readonly committed: () => void;
  readonly rolledBack: () => void;
}

interface TransactionEvent {
  readonly queryRunner: QueryRunnerLike;
}

const registrations = new WeakMap<object, Registration[]>();
const subscribers = new WeakMap<object, object>();

/** Tells how the transaction that is open on `runner` ends. Gives false if the query runner doesn't say how deep it is. */
export function whenRunnerEnded(
  dataSource: DataSourceLike,
  runner: QueryRunnerLike,
  ended: { committed: () => void; rolledBack: () => void },
): boolean {
  const depth = depthOf(runner);
  if (depth === undefined || depth === 0) return false;
  subscribe(dataSource);
  const known = registrations.get(runner) ?? [];
  known.push({ depth, ...ended });
  registrations.set(runner, known);
  return true;
}

/** How many levels are open; a protected field of TypeORM's query runners, the same in 0.3 and 1. */
function depthOf(runner: QueryRunnerLike): number | undefined {
  const { transactionDepth } = runner as { transactionDepth?: unknown };
  return typeof transactionDepth === 'number' ? transactionDepth : undefined;
}

function subscribe(dataSource: DataSourceLike): void {
  let subscriber = subscribers.get(dataSource);
  if (subscriber === undefined) {
    subscriber = { beforeTransactionCommit: refuseFailed, afterTransactionCommit, afterTransactionRollback };
    subscribers.set(dataSource, subscriber);
  }
  // `initialize()` makes a new list.
  if (!dataSource.subscribers.includes(subscriber)) dataSource.subscribers.push(subscriber);
}

/** A COMMIT of a failed transaction succeeds as a rollback; TypeORM would call that committed. */
async function refuseFailed({ queryRunner }: TransactionEvent): Promise<void> {
  if (!registrations.has(queryRunner)) return;
  const client = (queryRunner as { databaseConnection?: ClientLike }).databaseConnection;
  if (client === undefined || !(await hasFailed(client))) return;
  throw new TurnoutError('TURNOUT_TRANSACTION_ABORTED', 'The transaction had failed before it was to be committed.');
}

function afterTransactionCommit({ queryRunner }: TransactionEvent): void {
  const depth = depthOf(queryRunner) ?? 0;
  for (const registration of registrations.get(queryRunner) ?? [])
    registration.depth = Math.min(registration.depth, depth);
  settle(queryRunner, (registration) => registration.depth === 0, 'committed');
}

function afterTransactionRollback({ queryRunner }: TransactionEvent): void {
  const depth = depthOf(queryRunner) ?? 0;
  settle(queryRunner, (registration) => registration.depth > depth, 'rolledBack');
}

function settle(
  runner: QueryRunnerLike,
  concerned: (registration: Registration) => boolean,
  how: 'committed' | 'rolledBack',
): void {
  const known = registrations.get(runner);
  if (known === undefined) return;
  const left = known.filter((registration) => !concerned(registration));
  if (left.length === 0) registrations.delete(runner);
  else registrations.set(runner, left);
  for (const registration of known) if (concerned(registration)) registration[how]();
}
