import { createHash } from 'node:crypto';
import { TurnoutError } from '../errors/index.ts';
import type { QueryResultLike, Session } from './database.ts';

/** What Turnout uses of a connection of `pg`; structural, so that `src` needs no client library. */
export interface ClientLike {
  query(text: string, values?: unknown[]): Promise<ClientResult>;
  query(statement: ArrayStatement): Promise<{ readonly rows: unknown[][] }>;
  on(event: 'error', listener: (error: Error) => void): unknown;
  once(event: 'end', listener: () => void): unknown;
  removeListener(event: 'error' | 'end', listener: (error: Error) => void): unknown;
  /** `I` idle, `T` in a transaction, `E` in one that has failed; older versions of `pg` don't have it. */
  getTransactionStatus?(): string | null;
}

export interface ClientResult extends QueryResultLike<never> {
  /** The command tag: `COMMIT` of a transaction that had failed answers `ROLLBACK`. */
  readonly command: string;
}

interface ArrayStatement {
  name: string;
  text: string;
  values: unknown[];
  rowMode: 'array';
  types: { getTypeParser(): (value: string) => string };
}

/** A connection taken from a pool; `giveBack` with `true` closes it instead. */
export interface TakenClient<Client extends ClientLike = ClientLike> {
  readonly client: Client;
  readonly giveBack: (close: boolean) => void;
}

/** How a pool hands out its connections. */
export interface ClientPool<Client extends ClientLike = ClientLike> {
  take(): Promise<TakenClient<Client>>;
  /** Whether every connection of the pool is taken; undefined if it can't tell. */
  exhausted(): boolean | undefined;
}

const defaultConnectTimeoutMs = 10_000;

/**
 * Takes a connection, waiting at most `timeoutMs`. A pool whose connections wait for each other would else hang for ever.
 * Throws TURNOUT_POOL_TIMEOUT, TURNOUT_DATABASE_UNREACHABLE.
 */
export async function takeClient<Client extends ClientLike>(
  pool: ClientPool<Client>,
  timeoutMs: number = defaultConnectTimeoutMs,
): Promise<TakenClient<Client>> {
  let timer: NodeJS.Timeout | undefined;
  const patience = new Promise<'late'>((resolve) => {
    timer = setTimeout(() => resolve('late'), timeoutMs);
  });
  const taking = pool.take();
  try {
    const taken = await Promise.race([taking, patience]);
    if (taken !== 'late') return taken;
  } catch (error) {
    // What pg-pool says when its own connectionTimeoutMillis is over and all clients are out.
    if (error instanceof Error && /timeout exceeded when trying to connect/.test(error.message)) {
      throw poolTimeout(error);
    }
    throw unreachable(error);
  } finally {
    clearTimeout(timer);
  }
  // It may still come; nobody waits for it any more.
  taking.then(
    (taken) => taken.giveBack(false),
    () => undefined,
  );
  if (pool.exhausted() === false) throw unreachable(undefined, `The database has not answered within ${timeoutMs} ms.`);
  throw poolTimeout(undefined, timeoutMs);
}

function poolTimeout(cause: unknown, timeoutMs?: number): TurnoutError {
  const after = timeoutMs === undefined ? '' : ` within ${timeoutMs} ms`;
  return new TurnoutError('TURNOUT_POOL_TIMEOUT', `No connection of the pool became free${after}.`, { cause });
}

function unreachable(cause: unknown, what?: string): TurnoutError {
  const reason = cause instanceof Error ? cause.message || cause.name : String(cause);
  return new TurnoutError('TURNOUT_DATABASE_UNREACHABLE', what ?? `The database can't be reached: ${reason}.`, {
    cause,
  });
}

const lostCodes = new Set(['ECONNRESET', 'ECONNREFUSED', 'EPIPE', 'ETIMEDOUT', 'ENOTFOUND', '57P01', '57P02', '57P03']);
const lostMessage =
  /connection terminated|connection ended|not queryable|client was closed|server closed the connection/i;

/** Whether an error says that the connection is gone, not that the statement was wrong. */
export function isConnectionLost(error: unknown): boolean {
  if (!(error instanceof Error) || error instanceof TurnoutError) return false;
  const { code, driverError } = error as { code?: unknown; driverError?: unknown };
  if (typeof code === 'string' && (lostCodes.has(code) || code.startsWith('08'))) return true;
  return lostMessage.test(error.message) || isConnectionLost(driverError);
}

/** Gives TURNOUT_DATABASE_UNREACHABLE for a lost connection, and every other error back as it is. */
export function orUnreachable(error: unknown): unknown {
  return isConnectionLost(error) ? unreachable(error) : error;
}

/** A pooled client that is out has no listener of its own, and an unheard `error` event would end the process. */
export function ignoreErrorEvents(client: ClientLike): () => void {
  const listener = (): void => undefined;
  client.on('error', listener);
  return () => client.removeListener('error', listener);
}

/**
 * Whether the transaction that is open on a client has failed. An error reaches its statement before the server says that
 * it is ready again, and only then is the status known: between the two this asks once more.
 */
export async function hasFailed(client: ClientLike): Promise<boolean> {
  if (client.getTransactionStatus === undefined) {
    return client.query('select 1').then(
      () => false,
      () => true,
    );
  }
  if ((client as { readyForQuery?: boolean }).readyForQuery !== true) await client.query('');
  return client.getTransactionStatus() === 'E';
}

const names = new Map<string, string>();

/** One name for one text, in every copy of this module: a connection refuses a name that it knows for another text. */
function statementName(text: string): string {
  let name = names.get(text);
  if (name === undefined) names.set(text, (name = `turnout_${createHash('sha1').update(text).digest('base64url')}`));
  return name;
}

const asText = { getTypeParser: () => (value: string) => value };

/** Wraps a taken connection as a {@link Session}. */
export function sessionOf(taken: TakenClient): Session {
  const { client } = taken;
  let given = false;
  let isLost = false;
  let loseIt: () => void = () => undefined;
  const lost = new Promise<void>((resolve) => {
    loseIt = () => {
      isLost = true;
      resolve();
    };
  });
  client.on('error', loseIt);
  client.once('end', loseIt);

  async function guarded<Result>(run: () => Promise<Result>): Promise<Result> {
    if (given) throw new TurnoutError('TURNOUT_DATABASE_UNREACHABLE', 'The session was already given back.');
    try {
      return await run();
    } catch (error) {
      if (isConnectionLost(error)) loseIt();
      throw orUnreachable(error);
    }
  }

  return {
    lost,
    query<Row>(text: string, values?: unknown[]) {
      return guarded(() => client.query(text, values) as Promise<QueryResultLike<Row>>);
    },
    queryText(text, values = []) {
      return guarded(async () => {
        const result = await client.query({ name: statementName(text), text, values, rowMode: 'array', types: asText });
        return result.rows as (string | null)[][];
      });
    },
    release(destroy = false) {
      if (given) return;
      given = true;
      // Back to the pool it has the pool's own listener again.
      client.removeListener('end', loseIt);
      taken.giveBack(destroy || isLost);
      client.removeListener('error', loseIt);
    },
  };
}
