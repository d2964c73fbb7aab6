import type { ClientLike, ClientPool } from '../../src/database/index.ts';

/** What Turnout uses of a connection from a pool of `pg`. */
export interface PoolClientLike extends ClientLike {
  release(destroy?: boolean): void;
}

/** What Turnout uses of a pool of `pg`; the user's own fits as it is. */
export interface PoolLike {
  connect(): Promise<PoolClientLike>;
  query(text: string, values?: unknown[]): Promise<unknown>;
  readonly options?: { readonly max?: number | undefined };
  readonly totalCount?: number;
  readonly idleCount?: number;
}

/** How {@link ClientPool} takes connections from it. */
export function clientsOf<Client extends PoolClientLike>(pool: PoolLike): ClientPool<Client> {
  hearLostConnections(pool);
  return {
    async take() {
      const client = (await pool.connect()) as Client;
      return { client, giveBack: (close) => client.release(close) };
    },
    exhausted() {
      const max = pool.options?.max;
      if (max === undefined || pool.totalCount === undefined || pool.idleCount === undefined) return undefined;
      return pool.totalCount >= max && pool.idleCount === 0;
    },
  };
}

const heard = new WeakSet<PoolLike>();

/**
 * A pool of `pg` tells of idle connections that are lost by 'error', which ends a process in which nobody listens. It has
 * dropped the connection by then; whoever needs the next one hears if the server is away. One listener a pool, however often
 * it is given.
 */
export function hearLostConnections(pool: PoolLike): void {
  if (heard.has(pool)) return;
  heard.add(pool);
  const { on } = pool as { on?: (this: PoolLike, event: 'error', listener: () => void) => unknown };
  on?.call(pool, 'error', () => undefined);
}
