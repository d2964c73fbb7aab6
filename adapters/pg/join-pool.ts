import { joinedClient } from '../../src/database/index.ts';
import { hearLostConnections } from './pool.ts';
import type { PoolLike } from './pool.ts';

const originals = new WeakMap<object, PoolLike>();

/** The pool behind one that {@link joinPool} made. */
export function unjoined<Pool extends PoolLike>(pool: Pool): PoolLike {
  return originals.get(pool) ?? pool;
}

/**
 * A pool for code that can't be handed a transaction. While Turnout has one open on `pool` for the current async context
 * (a handler, `turnout.transaction()`), its `query()` and `connect()` use that transaction: BEGIN, COMMIT and ROLLBACK
 * become savepoints, and `release()` does nothing. Everywhere else it is `pool`.
 * Statements reject with TURNOUT_JOIN_REFUSED where joining would change what they mean.
 *
 * @example
 * export const pool = joinPool(new Pool());   // what the legacy code imports
 * const database = pgDatabase(pool);
 */
export function joinPool<Pool extends PoolLike>(pool: Pool): Pool {
  const own = unjoined(pool);
  hearLostConnections(own);
  const joined = new Proxy(own, {
    get(target, property) {
      if (property === 'connect') return connect;
      if (property === 'query') return query;
      const value: unknown = Reflect.get(target, property, target);
      return typeof value === 'function' ? (value as () => unknown).bind(target) : value;
    },
  });

  function connect(callback?: (error: unknown, client?: unknown, done?: () => void) => void): unknown {
    const client = joinedClient(own);
    if (client === undefined)
      return (own.connect as (...args: unknown[]) => unknown).call(own, ...(callback === undefined ? [] : [callback]));
    if (callback === undefined) return Promise.resolve(client);
    process.nextTick(callback, undefined, client, () => undefined);
    return undefined;
  }

  function query(...args: unknown[]): unknown {
    const client: { query: unknown } = joinedClient(own) ?? own;
    return (client.query as (...sent: unknown[]) => unknown).call(client, ...args);
  }

  originals.set(joined, own);
  return joined as Pool;
}
