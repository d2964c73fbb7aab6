import type { ClientLike, ClientPool } from '../../src/database/index.ts';
import { joinedClient } from '../../src/database/index.ts';
import type { DataSourceLike } from './types.ts';

/** How TypeORM's Postgres driver hands out connections of its pools of `pg`. */
interface PostgresDriverLike {
  obtainMasterConnection: () => Promise<Connection>;
  obtainSlaveConnection: () => Promise<Connection>;
  readonly master?: {
    readonly options?: { readonly max?: number };
    readonly totalCount?: number;
    readonly idleCount?: number;
  };
}

type Connection = [client: ClientLike, release: (close?: boolean) => void];

const originals = new WeakMap<object, PostgresDriverLike['obtainMasterConnection']>();

/** Connections of the data source's own pool, whether or not it is bound. */
export function clientsOf(dataSource: DataSourceLike): ClientPool {
  const driver = dataSource.driver as PostgresDriverLike;
  return {
    async take() {
      const obtain = originals.get(driver) ?? driver.obtainMasterConnection;
      const [client, release] = await obtain.call(driver);
      return { client, giveBack: release };
    },
    exhausted() {
      const { options, totalCount, idleCount } = driver.master ?? {};
      if (options?.max === undefined || totalCount === undefined || idleCount === undefined) return undefined;
      return totalCount >= options.max && idleCount === 0;
    },
  };
}

/** Undefined before the data source was initialized. */
export function poolSizeOf(dataSource: DataSourceLike): number | undefined {
  return (
    (dataSource.driver as PostgresDriverLike).master?.options?.max ??
    (dataSource.options as { poolSize?: number }).poolSize
  );
}

/**
 * Lets everything that uses a data source (repositories, its manager, `query`, `transaction`, query runners) join the
 * transaction that Turnout has open on it for the current async context: transactions of that code become savepoints of it.
 * Outside, the data source works as before. Gives the same data source; may be called before or after `initialize()`.
 *
 * What is built on after-commit hooks of subscribers sees such a savepoint's release as a commit.
 *
 * @example
 * export const dataSource = bindDataSource(new DataSource({ type: 'postgres', … }));
 */
export function bindDataSource<Source extends DataSourceLike>(dataSource: Source): Source {
  const driver = dataSource.driver as PostgresDriverLike;
  if (originals.has(driver)) return dataSource;
  const { obtainMasterConnection, obtainSlaveConnection } = driver;
  originals.set(driver, obtainMasterConnection);
  const joining = (obtain: () => Promise<Connection>) => async (): Promise<Connection> => {
    const client = joinedClient(dataSource);
    return client === undefined ? await obtain.call(driver) : [client, () => undefined];
  };
  driver.obtainMasterConnection = joining(obtainMasterConnection);
  // A replica doesn't see what the transaction has written.
  driver.obtainSlaveConnection = joining(obtainSlaveConnection);
  return dataSource;
}
