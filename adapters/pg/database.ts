import type { Database, Handed, QueryResultLike } from '../../src/database/index.ts';
import {
  joinableTransaction,
  orUnreachable,
  rehearseIn,
  sessionOf,
  takeClient,
  whenStandInEnded,
} from '../../src/database/index.ts';
import { TurnoutError } from '../../src/errors/index.ts';
import { unjoined } from './join-pool.ts';
import type { PoolClientLike, PoolLike } from './pool.ts';
import { clientsOf } from './pool.ts';

/** The client type of a pool: `PoolClient` for a `Pool` of `pg`. */
// A type is inferred from the last overload only, which in `pg` is the one with a callback.
export type ClientOf<Pool> = Pool extends {
  connect(): Promise<infer Client>;
  connect(callback: (error: Error | undefined, client: infer _Same, done: (release?: never) => void) => void): void;
}
  ? Client
  : Pool extends { connect(): Promise<infer Client> }
    ? Client
    : PoolClientLike;

/**
 * A Postgres database reached through the user's own pool of `pg` (8.11 or later). Handlers and `turnout.transaction()`
 * are handed a client of that pool; it is released for them.
 *
 * @param options.connectTimeoutMs How long to wait for a connection; default 10,000. Then TURNOUT_POOL_TIMEOUT if all
 * connections of the pool are taken, else TURNOUT_DATABASE_UNREACHABLE.
 *
 * @example
 * const database = pgDatabase(new Pool({ connectionString: process.env.DATABASE_URL }));
 */
export function pgDatabase<Pool extends PoolLike>(
  pool: Pool,
  options: { connectTimeoutMs?: number } = {},
): Database<ClientOf<Pool>> {
  type Client = PoolClientLike & ClientOf<Pool>;
  const own = unjoined(pool);
  const clients = clientsOf<Client>(own);
  const { connectTimeoutMs } = options;
  const joinable = {
    key: own,
    pool: clients,
    connectTimeoutMs,
    hand: (control: Client, tx: Client): Handed<ClientOf<Pool>> => ({
      tx,
      begin: () => control.query('begin'),
      commit: () => control.query('commit'),
      rollback: () => control.query('rollback'),
    }),
  };

  return {
    maxConnections: own.options?.max,
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
      const client = tx as PoolClientLike;
      requireTransaction(client);
      return {
        async query<Row>(text: string, values?: unknown[]): Promise<QueryResultLike<Row>> {
          try {
            return await client.query(text, values);
          } catch (error) {
            throw orUnreachable(error);
          }
        },
      };
    },
    // A client that the user began a transaction on doesn't tell how it ended; the one Turnout began does.
    whenEnded: (tx, ended) => whenStandInEnded(tx, ended),
  };
}

function requireTransaction(client: PoolClientLike): void {
  const isPool = 'totalCount' in client || typeof client.query !== 'function';
  // Null: nothing was sent yet on this connection; undefined: a version of `pg` that doesn't tell.
  if (isPool) throw required('It was given a pool, or no client at all.');
  if (client.getTransactionStatus?.() === 'I') throw required('No transaction is open on the client.');
}

function required(what: string): TurnoutError {
  return new TurnoutError('TURNOUT_TRANSACTION_REQUIRED', what);
}
