import { AsyncLocalStorage } from 'node:async_hooks';
import { TurnoutError, isTurnoutError } from '../errors/index.ts';
import type { ClientLike, ClientPool, ClientResult } from './client.ts';
import { ignoreErrorEvents, isConnectionLost, orUnreachable, takeClient } from './client.ts';
import type { Rehearsed } from './database.ts';
import type { Ending, OpenTransaction, Scope } from './open-transaction.ts';
import { isCut, openTransaction, refused } from './open-transaction.ts';
import { refusedInRehearsal } from './rehearsal-command.ts';
import { savepointCommands, transactionCommand } from './transaction-command.ts';

// How code that can't be handed a transaction takes part in one.
//
// The transaction that Turnout has open travels with the async context (AsyncLocalStorage), one storage for each pool.
// A bound pool looks there first: inside a transaction it hands out a stand-in for the open connection, whose BEGIN,
// COMMIT and ROLLBACK are savepoints and whose release() does nothing; outside, everything is as it was. Work that was
// started inside and goes on after the end of the transaction is outside, unless it was given up (`abandoning`).

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
  if (context === undefined || !isJoinable(context)) return undefined;
  return standIn(pool, context.client, context.transaction, 'joined').client;
}

const abandonments = new WeakSet<Error>();
const abandoned = new WeakSet<OpenTransaction>();

/**
 * Marks an error: the transaction that it rolls back is given up while the work inside still goes on. Bound pools then
 * refuse what that work goes on to write: outside the transaction it would be committed on its own, and once more by
 * whoever tries again.
 */
export function abandoning<Reason extends Error>(reason: Reason): Reason {
  abandonments.add(reason);
  return reason;
}

/** A stand-in for a transaction that was given up, or for a rehearsal that is over, refuses whatever it is asked. */
function isJoinable({ transaction, scope }: Pick<Context, 'transaction' | 'scope'>): boolean {
  return transaction.isOpen() || abandoned.has(transaction) || isCut(scope);
}

/** Savepoints of rehearsals: no command that ends one, and no cursor, gets through to what they are part of. */
const rehearsals = new WeakSet<Scope>();

function rehearsalOf(scope: Scope): Scope | undefined {
  for (let current: Scope | undefined = scope; current !== undefined; current = current.parent)
    if (rehearsals.has(current)) return current;
  return undefined;
}

const transactions = new WeakMap<object, { transaction: OpenTransaction; scope: () => Scope }>();

/** Tells the outcome of the transaction behind a stand-in; gives false for a connection that is none. */
export function whenStandInEnded(client: object, ending: Ending): boolean {
  const found = transactions.get(client);
  if (found === undefined) return false;
  const scope = found.scope();
  if (!found.transaction.isOpen() && !isCut(scope)) return false;
  found.transaction.whenEnded(scope, ending);
  return true;
}

/**
 * - `owner`: its BEGIN, COMMIT and ROLLBACK are those of the transaction.
 * - `inner`: they are those of a savepoint, for Turnout's own transaction inside another.
 * - `handed`: given to `work` by name; a statement that fails fails the transaction, and COMMIT is not for its holder.
 * - `joined`: found by code that believes it has a connection of its own; what it runs outside BEGIN … COMMIT it expects
 *   to fail alone, so each such statement has a savepoint.
 */
type Kind = 'owner' | 'inner' | 'handed' | 'joined';

interface StandIn<Client> {
  readonly client: Client;
  readonly scope: () => Scope;
}

function standIn<Client extends ClientLike>(
  pool: object,
  client: Client,
  transaction: OpenTransaction,
  kind: Kind,
  /** Of a rehearsal: whoever has this stand-in, wherever it was carried to, is inside it. */
  rehearsal?: Scope,
): StandIn<Client> {
  const storage = storageOf(pool);
  // Its savepoint is there already.
  let own: Scope | undefined = kind === 'inner' ? rehearsal : undefined;
  let begun = kind !== 'owner';

  function scope(): Scope {
    if (own !== undefined) return own;
    const context = storage.getStore();
    const around = context?.transaction === transaction ? context.scope : transaction.root;
    return rehearsal === undefined || rehearsalOf(around) === rehearsal ? around : rehearsal;
  }

  function dispatch(sql: string, send: () => Promise<unknown>): Promise<unknown> {
    const command = transactionCommand(sql);
    if (rehearsalOf(scope()) !== undefined) {
      const why = refusedInRehearsal(sql);
      if (why !== undefined) return Promise.reject(refused(why, { rehearsal: true }));
      if (own !== undefined && rehearsals.has(own) && (command === 'commit' || command === 'rollback'))
        return endNothing(command);
    }
    switch (command) {
      case 'begin':
        if (begun) return own === undefined ? begin() : Promise.resolve(answer('BEGIN'));
        begun = true;
        return transaction.run(scope(), send);
      case 'commit':
      case 'rollback':
        if (own !== undefined) return endOwn(own, command);
        return kind === 'owner' ? endTransaction(command, send) : endNothing(command);
      case 'ignore':
        return maySetUp(sql) ? transaction.run(scope(), send) : Promise.resolve(answer('SET'));
      case 'refuse':
        if (maySetUp(sql)) {
          begun = true;
          return transaction.run(scope(), send);
        }
        return Promise.reject(refused(`${JSON.stringify(sql.slice(0, 80))} can't be part of a joined transaction.`));
      case 'other':
        return own === undefined && kind === 'joined'
          ? transaction.run(scope(), () => alone(send))
          : transaction.run(scope(), () => followed(sql, send));
    }
  }

  /** Savepoints that the user handles with plain SQL, or TypeORM for a nested transaction, undo what was published since. */
  async function followed(sql: string, send: () => Promise<unknown>): Promise<unknown> {
    const savepoints = savepointCommands(sql);
    if (savepoints.length === 0) return send();
    const result = await send();
    for (const savepoint of savepoints) transaction.follow(scope(), savepoint);
    return result;
  }

  /** Whether this chooses the isolation of the transaction itself, and its holder knows that it does. */
  function maySetUp(sql: string): boolean {
    if (scope() !== transaction.root) return false;
    return kind === 'owner' ? /^\s*(?:begin|start|set)\b/i.test(sql) : kind === 'handed' && /^\s*set\b/i.test(sql);
  }

  async function begin(): Promise<ClientResult> {
    const begun = transaction.begin(scope());
    own = begun.scope;
    // From here on, whatever the caller does in this flow belongs to what it has begun, whichever connection it uses.
    if (kind !== 'inner') storage.enterWith({ client, transaction, scope: begun.scope });
    try {
      await begun.ready;
    } catch (error) {
      own = undefined;
      throw error;
    }
    return answer('BEGIN');
  }

  async function endOwn(ending: Scope, command: 'commit' | 'rollback'): Promise<ClientResult> {
    own = undefined;
    if (command === 'rollback') {
      await transaction.rollback(ending);
      return answer('ROLLBACK');
    }
    if (await transaction.commit(ending)) return answer('COMMIT');
    if (kind === 'inner') throw aborted();
    return answer('ROLLBACK');
  }

  async function endTransaction(command: 'commit' | 'rollback', send: () => Promise<unknown>): Promise<ClientResult> {
    if (!transaction.isOpen()) return answer('ROLLBACK');
    if (command === 'commit') {
      await transaction.finish(() => commit(client, send), { abandon: false });
      return answer('COMMIT');
    }
    await transaction.finish(() => send().then(() => false), { abandon: true });
    return answer('ROLLBACK');
  }

  // Postgres warns that no transaction is in progress, and goes on.
  async function endNothing(command: 'commit' | 'rollback'): Promise<ClientResult> {
    if (kind === 'joined' || (kind === 'inner' && own === undefined)) return answer(command.toUpperCase());
    throw refused(
      `The transaction is ended by who began it; ${command.toUpperCase()} is not for the code it was handed to.`,
    );
  }

  async function alone(send: () => Promise<unknown>): Promise<unknown> {
    await client.query('savepoint turnout_statement');
    try {
      const result = await send();
      await client.query('release savepoint turnout_statement');
      return result;
    } catch (error) {
      transaction.doubt();
      if (!isConnectionLost(error)) {
        await client.query('rollback to savepoint turnout_statement; release savepoint turnout_statement');
      }
      throw error;
    }
  }

  /** Cursors and streams drive the connection themselves and keep it until they are closed. */
  function submit(submittable: Submittable, send: () => void): void {
    const failsAlone = own === undefined && kind === 'joined';
    let sent = false;
    const drive = (): Promise<unknown> => {
      sent = true;
      return untilReady(submittable, send);
    };
    transaction.run(scope(), failsAlone ? () => alone(drive) : drive, { stays: true }).catch((error: unknown) => {
      // What comes later it hears from the connection.
      if (!sent) submittable.handleError(error as Error, (client as { connection?: unknown }).connection);
    });
  }

  function query(...args: unknown[]): unknown {
    const [first] = args;
    const send = client.query.bind(client) as (...sent: unknown[]) => Promise<unknown>;
    if (mayTakeBack(first)) transaction.doubt();
    if (isSubmittable(first)) {
      if (rehearsalOf(scope()) !== undefined) {
        const why = refused(
          'A cursor or query stream can’t be part of a rehearsal: nobody could take the connection back.',
          { rehearsal: true },
        );
        process.nextTick(() => first.handleError(why, (client as { connection?: unknown }).connection));
        return first;
      }
      submit(first, () => void send(...args));
      return first;
    }
    const tell = typeof args.at(-1) === 'function' ? (args.pop() as Tell) : undefined;
    const sql = typeof first === 'string' ? first : String((first as { text?: unknown }).text);
    const result = dispatch(sql, () => send(...args));
    // What nobody awaits is refused too when a rehearsal is over, and must not end the process by that.
    if (rehearsalOf(scope()) !== undefined) result.catch(() => undefined);
    if (tell === undefined) return result;
    // Not in the promise: what it throws is its own.
    result.then(
      (value) => process.nextTick(tell, null, value),
      (error: unknown) => process.nextTick(tell, error),
    );
    return undefined;
  }

  const stand = new Proxy(client, {
    get(target, property) {
      if (property === 'query') return query;
      if (property === 'release') return () => undefined;
      if (!watched.has(property)) transaction.doubt();
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== 'function') return value;
      // Many stand-ins, one connection: their holders hear of its loss from their statements.
      if (property === 'on' || property === 'once' || property === 'addListener') {
        return (event: string, listener: unknown) => {
          if (event !== 'error') (value as Listen).call(target, event, listener);
          return stand;
        };
      }
      return (value as () => unknown).bind(target);
    },
  });
  transactions.set(stand, { transaction, scope });
  return { client: stand, scope };
}

/** What a holder of the connection can ask of it without doing anything in the transaction. */
const watched: ReadonlySet<string | symbol> = new Set([
  'then',
  'on',
  'once',
  'addListener',
  'off',
  'removeListener',
  'listenerCount',
  'getTransactionStatus',
  'totalCount',
]);

/**
 * Whether a statement may go back to a savepoint, as far as can be told: no other has the word in it, however its names are
 * written. One that is known to the connection by a name has no text to look at.
 */
function mayTakeBack(statement: unknown): boolean {
  if (typeof statement === 'string') return /rollback/i.test(statement);
  if (typeof statement !== 'object' || statement === null || isSubmittable(statement)) return true;
  const { text, name } = statement as { text?: unknown; name?: unknown };
  return typeof text !== 'string' || name !== undefined || /rollback/i.test(text);
}

/** What `pg` lets run in place of a statement: `pg-cursor`, `pg-query-stream`, its own `Query`. */
interface Submittable {
  submit(connection: unknown): unknown;
  handleReadyForQuery(...args: unknown[]): unknown;
  handleError(error: Error, connection: unknown): unknown;
}

function isSubmittable(value: unknown): value is Submittable {
  return typeof value === 'object' && value !== null && 'submit' in value;
}

/** Sends it, and resolves when it leaves the connection to others; rejects if it failed (`pg` itself sees to what follows then). */
function untilReady(submittable: Submittable, send: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const handleReadyForQuery = submittable.handleReadyForQuery.bind(submittable);
    const handleError = submittable.handleError.bind(submittable);
    submittable.handleReadyForQuery = (...args) => {
      resolve();
      return handleReadyForQuery(...args);
    };
    submittable.handleError = (error, connection) => {
      reject(error);
      return handleError(error, connection);
    };
    send();
  });
}

type Tell = (error: unknown, result?: unknown) => void;
type Listen = (event: string, listener: unknown) => unknown;

function answer(command: string): ClientResult {
  return Object.assign({ command, rowCount: null, rows: [] as never[] }, { oid: 0, fields: [] });
}

function aborted(): TurnoutError {
  return new TurnoutError('TURNOUT_TRANSACTION_ABORTED', 'The transaction had failed before it was to be committed.');
}

async function commit(client: ClientLike, send: () => Promise<unknown>): Promise<boolean> {
  if (client.getTransactionStatus?.() === 'I') {
    throw refused('A statement inside the transaction has ended it; what came after was not part of it.');
  }
  let result: unknown;
  try {
    result = await send();
  } catch (error) {
    if (!isConnectionLost(error)) throw error;
    throw new TurnoutError('TURNOUT_COMMIT_UNKNOWN', 'It is not known whether the transaction was committed.', {
      cause: error,
    });
  }
  if ((result as ClientResult).command === 'ROLLBACK') throw aborted();
  return true;
}

/** What `work` is handed, and how the user's library begins and ends a transaction. */
export interface Handed<Tx> {
  readonly tx: Tx;
  begin(): Promise<unknown>;
  commit(): Promise<unknown>;
  rollback(): Promise<unknown>;
  /** Called at the end, however it came. */
  release?(): Promise<unknown>;
}

export interface JoinableOptions<Client extends ClientLike, Tx> {
  /** Stands for the user's pool: who is bound to the same object joins. */
  readonly key: object;
  readonly pool: ClientPool<Client>;
  readonly connectTimeoutMs: number | undefined;
  /** `control` begins and ends the transaction; `handed` is the same connection for who must not. */
  readonly hand: (control: Client, handed: Client) => Handed<Tx>;
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
  const around = storageOf(options.key).getStore();
  if (around !== undefined && isJoinable(around)) {
    return perform(options, around.client as Client, around.transaction, 'inner', work);
  }
  const { client, giveBack } = await takeClient(options.pool, options.connectTimeoutMs);
  const silence = ignoreErrorEvents(client);
  const failed = (): boolean => client.getTransactionStatus?.() === 'E';
  const transaction = openTransaction((sql) => client.query(sql), failed, options.connectTimeoutMs);
  let broken = true;
  try {
    const result = await perform(options, client, transaction, 'owner', work);
    broken = false;
    return result;
  } catch (error) {
    broken =
      isConnectionLost(error) ||
      isTurnoutError(error, 'TURNOUT_COMMIT_UNKNOWN') ||
      transaction.isOpen() ||
      transaction.isStuck();
    throw orUnreachable(error);
  } finally {
    silence();
    giveBack(broken || (client.getTransactionStatus?.() ?? 'I') !== 'I');
  }
}

async function perform<Client extends ClientLike, Tx, Result>(
  options: JoinableOptions<Client, Tx>,
  client: Client,
  transaction: OpenTransaction,
  kind: 'owner' | 'inner',
  work: (tx: Tx) => Promise<Result>,
): Promise<Result> {
  const control = standIn(options.key, client, transaction, kind);
  const handed = options.hand(control.client, standIn(options.key, client, transaction, 'handed').client);
  try {
    await handed.begin();
    const scope = control.scope();
    try {
      const result = await storageOf(options.key).run({ client, transaction, scope }, () => work(handed.tx));
      await handed.commit();
      return result;
    } catch (error) {
      const givenUp = error instanceof Error && abandonments.has(error);
      if (givenUp) abandoned.add(transaction);
      // A savepoint would have to wait for those that the work inside has open; the rollback of all does not.
      if (givenUp && kind === 'inner') throw error;
      if (!scope.ended && transaction.isOpen()) await handed.rollback().catch(() => undefined);
      throw error;
    }
  } catch (error) {
    throw withoutWrapper(error);
  } finally {
    await handed.release?.();
  }
}

/**
 * Runs `work` in a savepoint of the transaction that is open here, and takes back all that it wrote, whatever it did.
 * It has `timeoutMs`, each statement of it too; so twice that has passed at most when this resolves.
 * Throws TURNOUT_TRANSACTION_REQUIRED; what else it throws says that nobody knows what the transaction holds.
 */
export async function rehearseIn<Client extends ClientLike, Tx, Result>(
  options: JoinableOptions<Client, Tx>,
  work: (tx: Tx) => Promise<Result>,
  timeoutMs: number,
): Promise<Rehearsed<Result>> {
  const storage = storageOf(options.key);
  const around = storage.getStore();
  if (around === undefined || !isJoinable(around)) {
    throw new TurnoutError('TURNOUT_TRANSACTION_REQUIRED', 'There is no transaction open here to rehearse in.');
  }
  const client = around.client as Client;
  const { transaction } = around;
  const { scope, ready } = transaction.begin(around.scope);
  rehearsals.add(scope);
  await ready;
  const control = standIn(options.key, client, transaction, 'inner', scope);
  const handed = options.hand(control.client, standIn(options.key, client, transaction, 'handed', scope).client);
  let canceller: Canceller | undefined;
  const rehearse = async (): Promise<Rehearsed<Result>> => {
    // Taken back with the savepoint, like everything else.
    const { rows } = await transaction.run(scope, () =>
      client.query(
        "select set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true), pg_backend_pid()::text as backend",
        [String(Math.max(1, Math.ceil(timeoutMs)))],
      ),
    );
    const { backend } = (rows as { backend: string }[])[0]!;
    canceller = cancelAfter(options, backend, timeoutMs);
    try {
      await handed.begin();
      return { kind: 'done', result: await work(handed.tx) };
    } catch (error) {
      return { kind: 'threw', error: withoutWrapper(error) };
    }
  };
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<Rehearsed<Result>>((resolve) => {
    timer = setTimeout(() => resolve({ kind: 'late' }), timeoutMs);
  });
  try {
    return await Promise.race([storage.run({ client, transaction, scope }, rehearse), late]);
  } catch (error) {
    return { kind: 'threw', error };
  } finally {
    clearTimeout(timer);
    await transaction.cut(scope, () => canceller?.over() ?? Promise.resolve());
    await handed.release?.().catch(() => undefined);
  }
}

interface Canceller {
  /** Cancels nothing from now on; resolves when what it may have sent has arrived. */
  over(): Promise<void>;
}

/**
 * Ends, from another connection, a statement of a rehearsal that goes on after its own time-out should have ended it: what a
 * function does inside can't be seen, and it may have changed that. Where no connection is to be had, it goes on trying.
 */
function cancelAfter<Client extends ClientLike, Tx>(
  { pool, connectTimeoutMs }: JoinableOptions<Client, Tx>,
  backend: string,
  timeoutMs: number,
): Canceller {
  let isOver = false;
  let sent: Promise<unknown> = Promise.resolve();
  let timer: NodeJS.Timeout | undefined;
  const again = (delayMs: number): void => {
    if (!isOver) timer = setTimeout(() => void cancel(), delayMs);
  };
  async function cancel(): Promise<void> {
    try {
      const { client, giveBack } = await takeClient(pool, connectTimeoutMs);
      // A statement of the call itself must never be met: whoever goes on asks first whether one was sent.
      if (!isOver) sent = client.query('select pg_cancel_backend($1)', [backend]).catch(() => undefined);
      await sent;
      giveBack(false);
    } catch {
      // No connection is free.
    }
    again(timeoutMs);
  }
  // A statement may begin in the last moment, and has as long again. The rest is for the server to be first.
  again(2 * timeoutMs + 100);
  return {
    over() {
      isOver = true;
      clearTimeout(timer);
      return sent.then(() => undefined);
    },
  };
}

/** TypeORM wraps what its driver throws, Turnout's own errors too. */
function withoutWrapper(error: unknown): unknown {
  const inner = (error as { driverError?: unknown } | undefined)?.driverError;
  return inner instanceof TurnoutError ? inner : error;
}
