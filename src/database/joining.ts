import { AsyncLocalStorage } from 'node:async_hooks';
import { TurnoutError } from '../errors/index.ts';
import type { ClientLike, ClientPool, ClientResult } from './client.ts';
import { ignoreErrorEvents, isConnectionLost, orUnreachable, takeClient } from './client.ts';
import type { Ending, OpenTransaction, Scope } from './open-transaction.ts';
import { openTransaction, refused } from './open-transaction.ts';
import { transactionCommand } from './transaction-command.ts';

// How code that can't be handed a transaction takes part in one.
//
// The transaction that Turnout has open travels with the async context (AsyncLocalStorage), one storage for each pool.
// A bound pool looks there first: inside a transaction it hands out a stand-in for the open connection, whose BEGIN,
// COMMIT and ROLLBACK are savepoints and whose release() does nothing; outside, everything is as it was. Work that was
// started inside and goes on after the end of the transaction is outside.

interface Context {
  readonly client: ClientLike;
  readonly transaction: OpenTransaction;
  readonly scope: Scope;
}

const storages = new WeakMap<object, AsyncLocalStorage<Context>>();

/** `pool`: any object that stands for the user's pool; the same one for all who are to share transactions. */
function storageOf(pool: object): AsyncLocalStorage<Context> {
  let storage = storages.get(pool);
  if (storage === undefined) {
    storage = new AsyncLocalStorage();
    storages.set(pool, storage);
  }
  return storage;
}

/** A stand-in for the connection of the transaction that is open here for `pool`; undefined if none is. */
export function joinedClient(pool: object): ClientLike | undefined {
  const context = storageOf(pool).getStore();
  if (context === undefined || !context.transaction.isOpen()) return undefined;
  return standIn(pool, context.client, context.transaction, 'joined');
}

const transactions = new WeakMap<object, { transaction: OpenTransaction; scope: () => Scope }>();

/** Tells the outcome of the transaction behind a stand-in; gives false for a connection that is none. */
export function whenStandInEnded(client: object, ending: Ending): boolean {
  const found = transactions.get(client);
  if (found === undefined || !found.transaction.isOpen()) return false;
  found.transaction.whenEnded(found.scope(), ending);
  return true;
}

/**
 * `handed`: given to `work` by name; a statement that fails fails the transaction, and COMMIT is not for its holder.
 * `joined`: found by code that believes it has a connection of its own; what it runs outside BEGIN … COMMIT it expects
 * to fail alone, so each such statement has a savepoint.
 */
type Kind = 'handed' | 'joined';

function standIn<Client extends ClientLike>(pool: object, client: Client, transaction: OpenTransaction, kind: Kind): Client {
  const storage = storageOf(pool);
  let own: Scope | undefined;

  function scope(): Scope {
    if (own !== undefined) return own;
    const context = storage.getStore();
    return context?.transaction === transaction ? context.scope : transaction.root;
  }

  function dispatch(sql: string, send: () => Promise<unknown>): Promise<unknown> {
    const command = transactionCommand(sql);
    switch (command) {
      case 'begin':
        return own === undefined ? begin() : Promise.resolve(answer('BEGIN'));
      case 'commit':
      case 'rollback':
        return endOwn(command);
      case 'ignore':
        return Promise.resolve(answer('SET'));
      case 'refuse':
        return Promise.reject(refused(`${JSON.stringify(sql.slice(0, 80))} can't be part of a joined transaction.`));
      case 'other':
        return own === undefined && kind === 'joined'
          ? transaction.run(scope(), () => alone(send))
          : transaction.run(scope(), send);
    }
  }

  async function begin(): Promise<ClientResult> {
    const begun = transaction.begin(scope());
    own = begun.scope;
    // From here on, whatever the caller does in this flow belongs to what it has begun, whichever connection it uses.
    storage.enterWith({ client, transaction, scope: begun.scope });
    try {
      await begun.ready;
    } catch (error) {
      own = undefined;
      throw error;
    }
    return answer('BEGIN');
  }

  async function endOwn(command: 'commit' | 'rollback'): Promise<ClientResult> {
    const ending = own;
    if (ending === undefined) {
      if (kind === 'handed') {
        throw refused(`The transaction is ended by who began it; ${command.toUpperCase()} is not for the code it was handed to.`);
      }
      return answer(command.toUpperCase()); // Postgres warns that no transaction is in progress, and goes on.
    }
    own = undefined;
    if (command === 'rollback') {
      await transaction.rollback(ending);
      return answer('ROLLBACK');
    }
    return answer((await transaction.commit(ending)) ? 'COMMIT' : 'ROLLBACK');
  }

  async function alone(send: () => Promise<unknown>): Promise<unknown> {
    await client.query('savepoint turnout_statement');
    try {
      const result = await send();
      await client.query('release savepoint turnout_statement');
      return result;
    } catch (error) {
      if (!isConnectionLost(error)) {
        await client.query('rollback to savepoint turnout_statement; release savepoint turnout_statement');
      }
      throw error;
    }
  }

  function query(...args: unknown[]): unknown {
    const [first] = args;
    const send = client.query.bind(client) as (...sent: unknown[]) => Promise<unknown>;
    // Cursors and streams drive the connection themselves; `pg` queues them by itself.
    if (typeof first === 'object' && first !== null && 'submit' in first) return send(...args);
    const callback = typeof args.at(-1) === 'function' ? (args.pop() as Callback) : undefined;
    const sql = typeof first === 'string' ? first : String((first as { text?: unknown }).text);
    const result = dispatch(sql, () => send(...args));
    if (callback === undefined) return result;
    result.then(
      (value) => callback(null, value),
      (error: unknown) => callback(error),
    );
    return undefined;
  }

  const stand = new Proxy(client, {
    get(target, property) {
      if (property === 'query') return query;
      if (property === 'release') return () => undefined;
      const value: unknown = Reflect.get(target, property, target);
      return typeof value === 'function' ? (value as () => unknown).bind(target) : value;
    },
  });
  transactions.set(stand, { transaction, scope });
  return stand;
}

type Callback = (error: unknown, result?: unknown) => void;

function answer(command: string): ClientResult {
  return Object.assign({ command, rowCount: null, rows: [] as never[] }, { oid: 0, fields: [] });
}

export interface JoinableOptions<Client extends ClientLike, Tx> {
  /** Stands for the user's pool: who is bound to the same object joins. */
  readonly key: object;
  readonly pool: ClientPool<Client>;
  readonly connectTimeoutMs: number | undefined;
  /** Makes what `work` is handed out of the stand-in for the connection. */
  readonly hand: (client: Client) => Tx;
}

/**
 * Runs `work` in a transaction that bound pools join; inside such a transaction, in a savepoint of it.
 * Throws TURNOUT_TRANSACTION_ABORTED, TURNOUT_COMMIT_UNKNOWN, TURNOUT_POOL_TIMEOUT, TURNOUT_DATABASE_UNREACHABLE, and
 * what `work` throws.
 */
export async function joinableTransaction<Client extends ClientLike, Tx, Result>(
  options: JoinableOptions<Client, Tx>,
  work: (tx: Tx) => Promise<Result>,
): Promise<Result> {
  const storage = storageOf(options.key);
  const around = storage.getStore();
  if (around !== undefined && around.transaction.isOpen()) return nested(storage, options, around, work);

  const { client, giveBack } = await takeClient(options.pool, options.connectTimeoutMs);
  const silence = ignoreErrorEvents(client);
  const failed = (): boolean => client.getTransactionStatus?.() === 'E';
  let broken = false;
  try {
    await client.query('begin');
    const transaction = openTransaction((sql) => client.query(sql), failed, options.connectTimeoutMs);
    try {
      const tx = options.hand(standIn(options.key, client, transaction, 'handed'));
      const result = await storage.run({ client, transaction, scope: transaction.root }, () => work(tx));
      await transaction.finish(() => commit(client), { abandon: false });
      return result;
    } catch (error) {
      if (transaction.isOpen()) {
        await transaction.finish(() => client.query('rollback').then(() => false), { abandon: true }).catch(() => (broken = true));
      }
      throw error;
    }
  } catch (error) {
    broken ||= isConnectionLost(error) || (error instanceof TurnoutError && error.code === 'TURNOUT_COMMIT_UNKNOWN');
    throw orUnreachable(error);
  } finally {
    silence();
    giveBack(broken || (client.getTransactionStatus?.() ?? 'I') !== 'I');
  }
}

async function commit(client: ClientLike): Promise<boolean> {
  if (client.getTransactionStatus?.() === 'I') {
    throw refused('A statement inside the transaction has ended it; what came after was not part of it.');
  }
  let result: ClientResult;
  try {
    result = await client.query('commit');
  } catch (error) {
    if (!isConnectionLost(error)) throw error;
    throw new TurnoutError('TURNOUT_COMMIT_UNKNOWN', 'It is not known whether the transaction was committed.', { cause: error });
  }
  if (result.command === 'ROLLBACK') {
    throw new TurnoutError('TURNOUT_TRANSACTION_ABORTED', 'The transaction had failed before it was to be committed.');
  }
  return true;
}

async function nested<Client extends ClientLike, Tx, Result>(
  storage: AsyncLocalStorage<Context>,
  options: JoinableOptions<Client, Tx>,
  around: Context,
  work: (tx: Tx) => Promise<Result>,
): Promise<Result> {
  const { transaction } = around;
  const client = around.client as Client;
  const { scope, ready } = transaction.begin(around.scope);
  await ready;
  try {
    const tx = options.hand(standIn(options.key, client, transaction, 'handed'));
    const result = await storage.run({ client, transaction, scope }, () => work(tx));
    if (!(await transaction.commit(scope))) {
      throw new TurnoutError('TURNOUT_TRANSACTION_ABORTED', 'The inner transaction had failed before it was to be committed.');
    }
    return result;
  } catch (error) {
    if (!scope.ended && transaction.isOpen()) await transaction.rollback(scope).catch(() => undefined);
    throw error;
  }
}
