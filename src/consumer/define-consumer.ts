import type { Database } from '../database/index.ts';
import { invalidDefinition } from '../errors/index.ts';
import { isName } from '../event/index.ts';
import type { AnyEventDefinition, Reaction } from '../event/index.ts';
import { defaultLeaseMs, defaultRetentionMs } from '../inbox/index.ts';
import type { RetryPolicy } from '../lifecycle/index.ts';

/** What a handler is given besides its event. */
export interface DetachedContext {
  /** Aborted when the partition was lost or the process stops, and the time to finish has passed. */
  readonly signal: AbortSignal;
  /** Counts from 1. */
  readonly attempt: number;
  /** The dedupe id of this effect: pass it on as an idempotency key. */
  readonly effectKey: string;
}

/** What a handler is given that works in the transaction of the inbox. */
export interface HandlerContext<Tx> extends DetachedContext {
  /** The open transaction: what is written in it happens once. */
  readonly tx: Tx;
}

/**
 * How much is promised. `'transaction'`: handlers work in the transaction of the inbox, their effects happen once. `'detached'`: handlers can't
 * take part in it; an intent is written before and the outcome after: at least once.
 */
export type ConsumerMode = 'transaction' | 'detached';

interface CommonOptions {
  /** Also the name of its group at the broker. */
  readonly name: string;
  /**
   * Where it starts if the group has committed nothing: with all that the topics hold, or with what comes next. There is no
   * default: a new mailer must not mail all history.
   */
  readonly from: 'beginning' | 'now';
  /** Event types that reach this consumer through a switchover: those without a route for it are only observed. */
  readonly inSwitchover?: readonly AnyEventDefinition[];
  /** For errors of handlers. Default: 5 attempts, 200 ms to 10 s. */
  readonly retry?: Partial<RetryPolicy>;
  /** After the last attempt. Default `'park'`: the event is set aside with the later ones of its key, and others flow on. */
  readonly onFailure?: 'park' | 'halt';
  /** Events handled at once, over all partitions; each takes a connection. Default 4, or what the pool allows. */
  readonly concurrency?: number;
  /** How long the inbox keeps outcomes. Default 30 days, in milliseconds. */
  readonly retentionMs?: number;
  /** In stage shadow: of which share of the effects it is noted that their event came, 0 to 1. Default 1. */
  readonly shadowSample?: number;
  /** How long a handler in hand may go on when the process stops or loses the partition. Default 10,000 ms. */
  readonly graceMs?: number;
}

export interface TransactionOptions<Tx> extends CommonOptions {
  /** Default. */
  readonly mode?: 'transaction' | undefined;
  readonly handlers: readonly Reaction<HandlerContext<Tx>>[];
}

export interface DetachedOptions extends CommonOptions {
  readonly mode: 'detached';
  readonly handlers: readonly Reaction<DetachedContext>[];
  /** After how long an intent without an outcome is taken to be left by a crash. Default 60,000 ms. */
  readonly leaseMs?: number;
  /**
   * What key numbers of an ordered switchover are for. `'gate'` (default): calls and events meet in this consumer's inbox, and
   * the numbers order both. `'ignored'`: calls pass it by (it is a bridge); its own events are in order by their partition.
   */
  readonly keyNumbers?: 'gate' | 'ignored';
}

export type ConsumerOptions<Tx> = TransactionOptions<Tx> | DetachedOptions;

/** A consumer as {@link defineConsumer} made it. */
export interface ConsumerDefinition<Tx = unknown> {
  readonly name: string;
  readonly database: Database<Tx>;
  readonly from: 'beginning' | 'now';
  readonly handlers: readonly Reaction<never>[];
  readonly inSwitchover: readonly AnyEventDefinition[];
  readonly mode: ConsumerMode;
  readonly retry: RetryPolicy;
  readonly onFailure: 'park' | 'halt';
  readonly concurrency: number | undefined;
  readonly retentionMs: number;
  readonly graceMs: number;
  readonly leaseMs: number;
  readonly shadowSample: number;
  readonly keyNumbers: 'gate' | 'ignored';
}

/**
 * Defines a consumer: a named subscriber with its handlers, and the database in which its effects, its inbox and its
 * positions live. What a handler writes through `tx` happens once. Types come from the definitions of the events and from
 * the database. (It is an argument of its own because TypeScript infers arguments from left to right; the properties of one
 * object it doesn't.) Throws TURNOUT_DEFINITION_INVALID.
 *
 * Handlers that can't take part in a transaction (they call another service, or keep their effects elsewhere) are
 * `mode: 'detached'`: an intent is committed before the handler runs and its outcome after. That is at least once: after a
 * crash in between the effect is uncertain, tried again, and reported (an alarm `uncertain`). Hand `effectKey` on as an
 * idempotency key. A handler that was refused for good returns `endedAs({ outcome: 'rejected' })`; one that throws
 * TURNOUT_ENDPOINT_UNAVAILABLE is tried again until it gets through, whatever `retry` says.
 *
 * @example
 * export const loyalty = defineConsumer(pgDatabase(pool), {
 *   name: 'loyalty',
 *   from: 'now',
 *   handlers: [
 *     on(OrderPlaced, async (event, { tx }) => {
 *       await tx.query('update account set points = points + $1 where id = $2', [event.data.total, event.data.customerId]);
 *     }),
 *   ],
 * });
 *
 * @example
 * export const crm = defineConsumer(pgDatabase(pool), {
 *   name: 'crm',
 *   from: 'now',
 *   mode: 'detached',
 *   handlers: [on(OrderPlaced, (event, { effectKey, signal }) => crmApi.notify(event.data, { idempotencyKey: effectKey, signal }))],
 * });
 */
export function defineConsumer<Tx>(database: Database<Tx>, options: ConsumerOptions<Tx>): ConsumerDefinition<Tx> {
  const { name, from, handlers, inSwitchover = [], mode = 'transaction', onFailure = 'park', concurrency } = options;
  if (!isName(name))
    throw invalidDefinition(
      'name',
      `${JSON.stringify(name)} is not a name: lower case letters, digits, dots, dashes, underscores.`,
    );
  if (typeof database?.transaction !== 'function') {
    throw invalidDefinition(
      'database',
      `Consumer ${name} has no database: use pgDatabase(pool) or typeOrmDatabase(dataSource).`,
    );
  }
  if (from !== 'beginning' && from !== 'now') {
    throw invalidDefinition('from', `Consumer ${name} has to say from where it starts: 'beginning' or 'now'.`);
  }
  if (!Array.isArray(handlers) || handlers.length === 0)
    throw invalidDefinition('handlers', `Consumer ${name} has no handler.`);
  const seen = new Set<string>();
  for (const [index, { event }] of handlers.entries()) {
    const type = `${event.name} v${event.version}`;
    if (seen.has(type)) throw invalidDefinition(`handlers.${index}`, `Consumer ${name} has two handlers for ${type}.`);
    seen.add(type);
  }
  if (mode !== 'transaction' && mode !== 'detached')
    throw invalidDefinition('mode', `Consumer ${name} can't have mode ${String(mode)}.`);
  if (onFailure !== 'park' && onFailure !== 'halt')
    throw invalidDefinition('onFailure', `Consumer ${name} can't have onFailure ${String(onFailure)}.`);
  if (concurrency !== undefined && (!Number.isInteger(concurrency) || concurrency < 1)) {
    throw invalidDefinition('concurrency', `Consumer ${name} can't have concurrency ${concurrency}.`);
  }
  const retry = { attempts: 5, firstDelayMs: 200, maxDelayMs: 10_000, ...options.retry };
  if (!(retry.attempts >= 1 && retry.firstDelayMs >= 0 && retry.maxDelayMs >= 0)) {
    throw invalidDefinition('retry', `Consumer ${name} can't have the retry policy ${JSON.stringify(retry)}.`);
  }
  const { retentionMs = defaultRetentionMs, graceMs = 10_000, shadowSample = 1 } = options;
  if (!(shadowSample >= 0 && shadowSample <= 1))
    throw invalidDefinition(
      'shadowSample',
      `Consumer ${name} can't have shadowSample ${shadowSample}; it is a share from 0 to 1.`,
    );
  const detached: Partial<DetachedOptions> = options.mode === 'detached' ? options : {};
  const { leaseMs = defaultLeaseMs, keyNumbers = 'gate' } = detached;
  return Object.freeze({
    name,
    database,
    from,
    handlers,
    inSwitchover,
    mode,
    retry,
    onFailure,
    concurrency,
    retentionMs,
    graceMs,
    leaseMs,
    shadowSample,
    keyNumbers,
  });
}
