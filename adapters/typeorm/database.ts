import type { ClientLike, Database, Handed, Queryable, QueryResultLike } from '../../src/database/index.ts';
import {
  joinableTransaction,
  orUnreachable,
  rehearseIn,
  sessionOf,
  takeClient,
  whenStandInEnded,
} from '../../src/database/index.ts';
import { TurnoutError } from '../../src/errors/index.ts';
import { whenRunnerEnded } from './after-commit.ts';
import { clientsOf, poolSizeOf } from './connections.ts';
import type { DataSourceLike, EntityManagerLike, QueryRunnerLike } from './types.ts';

/** What hands out entity managers, and takes query runners too where it is told of an open transaction. */
export interface TypeOrmDatabase<Manager extends EntityManagerLike> extends Database<Manager> {
  within(tx: Manager | QueryRunnerLike): Queryable;
  whenEnded(
    tx: Manager | QueryRunnerLike,
    ended: { committed: (whole?: boolean) => void; rolledBack: () => void },
  ): boolean;
}

/**
 * A Postgres database reached through a `DataSource` of TypeORM (0.3.20 or later). Handlers and `turnout.transaction()`
 * are handed an `EntityManager`; `publish` takes one with an open transaction, or a `QueryRunner`. In transactions of the
 * user's own, calls start from TypeORM's after-commit hook.
 *
 * @param options.connectTimeoutMs How long to wait for a connection; default 10,000. Then TURNOUT_POOL_TIMEOUT if all
 * connections of the pool are taken, else TURNOUT_DATABASE_UNREACHABLE.
 *
 * @example
 * const database = typeOrmDatabase(dataSource);
 * await dataSource.transaction(async (manager) => {
 *   await manager.save(order);
 *   await turnout.publish(manager, OrderPlaced, order);
 * });
 */
export function typeOrmDatabase<Manager extends EntityManagerLike>(
  dataSource: DataSourceLike<Manager>,
  options: { connectTimeoutMs?: number } = {},
): TypeOrmDatabase<Manager> {
  const { connectTimeoutMs } = options;
  const clients = clientsOf(dataSource);
  const joinable = {
    key: dataSource,
    pool: clients,
    connectTimeoutMs,
    hand: (control: ClientLike) => handed(dataSource, control),
  };

  return {
    get maxConnections() {
      return poolSizeOf(dataSource);
    },
    connect: async () => sessionOf(await takeClient(clients, connectTimeoutMs)),
    async query<Row>(text: string, values?: unknown[]) {
      const session = sessionOf(await takeClient(clients, connectTimeoutMs));
      try {
        return await session.query<Row>(text, values);
      } finally {
        session.release();
      }
    },
    transaction: (work) => joinableTransaction(joinable, work),
    rehearse: (work, { timeoutMs }) => rehearseIn(joinable, work, timeoutMs),
    within(tx) {
      const runner = openRunner(tx);
      return {
        async query<Row>(text: string, values?: unknown[]): Promise<QueryResultLike<Row>> {
          try {
            const client = (await runner.connect()) as ClientLike;
            return await client.query(text, values);
          } catch (error) {
            throw orUnreachable(error);
          }
        },
      };
    },
    whenEnded(tx, ended) {
      const runner = openRunner(tx);
      const client = connectionOf(runner);
      return (client !== undefined && whenStandInEnded(client, ended)) || whenRunnerEnded(dataSource, runner, ended);
    },
  };
}

/** A query runner on a given connection, whose transaction begins and ends as TypeORM's do, subscribers included. */
function handed<Manager extends EntityManagerLike>(
  dataSource: DataSourceLike<Manager>,
  control: ClientLike,
): Handed<Manager> {
  const runner = dataSource.createQueryRunner();
  (runner as { databaseConnection?: ClientLike }).databaseConnection = control;
  return {
    tx: runner.manager,
    begin: () => runner.startTransaction(),
    commit: () => runner.commitTransaction(),
    rollback: () => runner.rollbackTransaction(),
    release: () => runner.release(),
  };
}

/** The connection of a runner that has one; `connect()` would say it too, but later. */
export function connectionOf(runner: QueryRunnerLike): ClientLike | undefined {
  return (runner as { databaseConnection?: ClientLike }).databaseConnection;
}

function openRunner(tx: EntityManagerLike | QueryRunnerLike): QueryRunnerLike {
  const runner = 'startTransaction' in tx ? tx : tx.queryRunner;
  if (runner === undefined) throw required('The entity manager has no transaction: it is that of the data source.');
  // BEGIN sent as plain SQL is nothing that TypeORM knows of; the connection does.
  const status = connectionOf(runner)?.getTransactionStatus?.();
  if (!runner.isTransactionActive && status !== 'T' && status !== 'E')
    throw required('No transaction is open on the query runner.');
  return runner;
}

function required(what: string): TurnoutError {
  return new TurnoutError('TURNOUT_TRANSACTION_REQUIRED', what);
}
