import { isTurnoutError } from '../errors/index.ts';
import type { TurnoutError } from '../errors/index.ts';
import type { Database, Queryable } from '../database/index.ts';
import type { AnyEventDefinition, Envelope, Reaction, Turn, TurnoutEvent } from '../event/index.ts';
import { apply, ensureInboxPartition, hold, holdNumber, intend, noteFailed, settle } from '../inbox/index.ts';
import type { Arrival, Effect, HeldMessage, HoldReason, Verdict } from '../inbox/index.ts';
import { failpoint, sleep } from '../lifecycle/index.ts';
import type { Logger } from '../lifecycle/index.ts';
import { afterVerdict, onEntry } from './decide.ts';
import type { FailureKind } from './decide.ts';
import type { ConsumerDefinition, DetachedContext } from './define-consumer.ts';
import { effectOf } from './detached-effect.ts';
import { raiseAlarm } from './position-store.ts';
import type { Standing } from './position-store.ts';
import { isOrdered } from './read-event.ts';
import type { HandlerTable } from './read-event.ts';

/** What all parts of one running consumer share. */
export interface Runtime {
  readonly definition: ConsumerDefinition;
  readonly table: HandlerTable;
  readonly logger: Logger;
  /** Runs work when one of the `concurrency` places is free. */
  readonly inTurn: <Result>(work: () => Promise<Result>) => Promise<Result>;
}

/** One effect that is owed. */
export interface Performance {
  readonly envelope: Envelope;
  readonly reaction: Reaction<never>;
  readonly event: TurnoutEvent<never>;
  readonly message: HeldMessage;
  readonly effectKey: string;
  readonly turn: Turn | undefined;
  readonly signal: AbortSignal;
  /** Counts from 1. */
  readonly attempt: number;
  readonly retentionMs: number;
  /** Whether an intent without an outcome can only be this process's own, of an attempt that failed. */
  readonly ownIntent: boolean;
  /** What became of the handler, if it has run already and only its outcome could not be written. Detached only. */
  readonly ended: Effect | undefined;
}

/** What surrounds an effect: the fence and position of a partition, or nothing for an event that was held. */
export interface Surroundings {
  /** Checks that the caller may still do this, and moves nothing. */
  check(tx: Queryable): Promise<Standing>;
  /** Checks the same, and moves the position behind the event. */
  move(tx: Queryable): Promise<Standing>;
}

/** How it went, if nothing failed. `busy`: somebody else is at the same effect just now. */
export type Performed = 'applied' | 'repeated' | 'held' | 'busy';

/** What the handler threw, told apart from what failed around it. */
export class HandlerThrew extends Error {
  override readonly name = 'HandlerThrew';
}

/** Somebody else is at the effect, or has its lock: rolls the transaction back, so that the position stays before the event. */
class Busy extends Error {
  override readonly name = 'Busy';
}

/**
 * Lets one event have its effect: fence, position, dedupe, handler and outcome in one transaction; for detached handlers the
 * intent in one, the outcome and the position in another. Rejects if anything fails; nothing is changed then,
 * except what a detached handler did. What a handler threw is the cause of a {@link HandlerThrew}.
 */
export async function perform(
  runtime: Runtime,
  performance: Performance,
  around: Surroundings,
  onRun?: (ended: Effect) => void,
): Promise<Performed> {
  const { definition } = runtime;
  await ensureInboxPartition(definition.database, performance.envelope.time);
  return orBusy(() =>
    definition.mode === 'detached'
      ? performDetached(runtime, performance, around, onRun)
      : performInTransaction(runtime, performance, around),
  );
}

/** Runs a transaction, and tells it if that was rolled back since somebody else is at the effect. */
export async function orBusy<Result>(work: () => Promise<Result>): Promise<Result | 'busy'> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof Busy) return 'busy';
    throw error;
  }
}

async function performInTransaction(
  { definition }: Runtime,
  performance: Performance,
  around: Surroundings,
): Promise<Performed> {
  const { database, name } = definition;
  const arrival = arrivalOf(name, performance);
  const { signal, attempt, effectKey } = performance;
  const movesFirst = failpoint('consumer.position-before-effect');
  if (movesFirst) {
    await database.transaction((tx) => around.move(database.within(tx)));
    await sleep(100);
  }
  return database.transaction(async (tx) => {
    const queryable = database.within(tx);
    const standing = await (movesFirst ? around.check(queryable) : around.move(queryable));
    const entry = onEntry({ ...standing, ordered: isInOrder(performance) });
    if (entry === 'held') return holdAgain(queryable, arrival);
    if (entry === 'behind') return holdIt(queryable, performance, arrival, 'behind');
    const context = { tx, signal, attempt, effectKey };
    const verdict = await apply(
      queryable,
      arrival,
      async () => {
        await react(performance, context);
        return { outcome: 'applied' };
      },
      { savepoint: false, retentionMs: performance.retentionMs },
    );
    return conclude(queryable, performance, arrival, verdict);
  });
}

async function performDetached(
  { definition, logger }: Runtime,
  performance: Performance,
  around: Surroundings,
  onRun?: (ended: Effect) => void,
): Promise<Performed> {
  const { database, name, leaseMs } = definition;
  const arrival = arrivalOf(name, performance);
  const { signal, effectKey, retentionMs, ownIntent } = performance;
  let { attempt, ended } = performance;
  if (ended === undefined) {
    const begun = await database.transaction(async (tx) => {
      const queryable = database.within(tx);
      const standing = await around.check(queryable);
      const entry = onEntry({ ...standing, ordered: isInOrder(performance) });
      if (entry === 'apply') {
        const verdict = await intend(queryable, arrival, { retentionMs, leaseMs: ownIntent ? 0 : leaseMs });
        if (verdict.kind === 'go') {
          if (verdict.uncertain && !ownIntent) {
            await raiseAlarm(queryable, name, { kind: 'uncertain', detail: { effectKey, attempt: verdict.attempt } });
          }
          return verdict;
        }
        await around.move(queryable);
        return conclude(queryable, performance, arrival, verdict);
      }
      await around.move(queryable);
      return entry === 'held' ? holdAgain(queryable, arrival) : holdIt(queryable, performance, arrival, 'behind');
    });
    if (typeof begun === 'string') return begun;
    attempt = begun.attempt;
    if (begun.uncertain && !ownIntent) {
      logger.warn('An effect was begun before and its outcome is not known; it is run again.', {
        consumer: name,
        effectKey,
        attempt,
      });
    }
    try {
      ended = effectOf(await react(performance, { signal, attempt, effectKey }));
    } catch (error) {
      // If it can't be noted, the lease decides.
      await database.transaction((tx) => noteFailed(database.within(tx), arrival, attempt)).catch(() => undefined);
      throw error;
    }
    onRun?.(ended);
  }
  const outcome = ended;
  try {
    return await database.transaction(async (tx) => {
      const queryable = database.within(tx);
      await around.move(queryable);
      return conclude(queryable, performance, arrival, await settle(queryable, arrival, outcome, attempt));
    });
  } catch (error) {
    if (!isTurnoutError(error, 'TURNOUT_PARTITION_FENCED')) throw error;
    // The position is the new owner's; that the effect has happened is true all the same, and its lock is enough to say so.
    const verdict = await database.transaction((tx) => settle(database.within(tx), arrival, outcome, attempt));
    if (verdict.kind === 'running') throw new Busy();
    throw error;
  }
}

async function react({ reaction, event }: Performance, context: DetachedContext): Promise<unknown> {
  try {
    return await reaction.react(event, context as never);
  } catch (error) {
    throw new HandlerThrew('A handler threw.', { cause: error });
  }
}

async function conclude(
  tx: Queryable,
  performance: Performance,
  arrival: Arrival,
  verdict: Verdict,
): Promise<Performed> {
  const next = afterVerdict(verdict, performance.effectKey);
  switch (next.kind) {
    case 'hold':
      return holdIt(tx, performance, arrival, next.reason, next.error);
    case 'busy':
      throw new Busy();
    default:
      return next.kind;
  }
}

async function holdIt(
  tx: Queryable,
  { message, reaction }: Performance,
  arrival: Arrival,
  reason: HoldReason,
  error?: TurnoutError,
): Promise<'held' | 'repeated'> {
  const more = error === undefined ? {} : { error: describeError(error) };
  return setAside(tx, message, holdKeyOf(arrival, reaction.event), reason, more);
}

/** It is held already; the number with which it comes must not be lost. */
async function holdAgain(tx: Queryable, arrival: Arrival): Promise<'held'> {
  if (arrival.turn !== undefined && (await holdNumber(tx, arrival)) === 'busy') throw new Busy();
  return 'held';
}

/** Holds an event, unless it has its outcome by now. Only within {@link orBusy}. */
export async function setAside(
  tx: Queryable,
  message: HeldMessage,
  arrival: Arrival,
  reason: HoldReason,
  more: { readonly error?: string; readonly attempts?: number },
): Promise<'held' | 'repeated'> {
  const result = await hold(tx, arrival, message, reason, more);
  if (result === 'busy') throw new Busy();
  return result === 'done' ? 'repeated' : 'held';
}

/** Unordered events are held without their key, so that nothing waits behind them. */
export function holdKeyOf(arrival: Arrival, definition: AnyEventDefinition): Arrival {
  return arrival.turn !== undefined || isOrdered(definition, arrival.key) ? arrival : { ...arrival, key: null };
}

/** Whether it waits for held ones of its key; for those with lower numbers the gate makes it wait. */
function isInOrder({ turn, reaction, envelope }: Performance): boolean {
  return turn !== undefined || isOrdered(reaction.event, envelope.key);
}

export function arrivalOf(
  consumer: string,
  { envelope, effectKey, turn }: Pick<Performance, 'envelope' | 'effectKey' | 'turn'>,
): Arrival {
  const { id, type, source, topic, key, time } = envelope;
  return {
    consumer,
    effectKey,
    eventId: id,
    eventType: type,
    source,
    topic,
    key,
    occurredAt: time,
    path: 'event',
    turn,
  };
}

/** Why an attempt failed. What the handler threw is the handler's, unless the database is away or stood in its way. */
export async function classify(database: Database, error: unknown): Promise<FailureKind> {
  if (isTurnoutError(error, 'TURNOUT_PARTITION_FENCED')) return 'fenced';
  const threw = error instanceof HandlerThrew;
  const reason = threw ? error.cause : error;
  if (isConflict(reason)) return 'conflict';
  // What the handler calls is away: that says nothing of the event either.
  if (isTurnoutError(reason, 'TURNOUT_ENDPOINT_UNAVAILABLE')) return 'outage';
  if (!threw && outages.some((code) => isTurnoutError(reason, code))) return 'outage';
  try {
    await database.query('select 1');
    return 'handler';
  } catch {
    return 'outage';
  }
}

const outages = ['TURNOUT_DATABASE_UNREACHABLE', 'TURNOUT_POOL_TIMEOUT', 'TURNOUT_COMMIT_UNKNOWN'] as const;

/** Serialization failure or deadlock, as `pg` tells it, or wrapped as by TypeORM. */
function isConflict(error: unknown): boolean {
  if (typeof error !== 'object' || error === null) return false;
  const { code, driverError } = error as { code?: unknown; driverError?: unknown };
  return code === '40001' || code === '40P01' || (driverError !== undefined && isConflict(driverError));
}

/** What is kept of an error with a held event: its code, if it has one, and its message. */
export function describeError(error: unknown): string {
  const reason: unknown = error instanceof HandlerThrew ? error.cause : error;
  if (!(reason instanceof Error)) return String(reason);
  const { code } = reason as { code?: unknown };
  return typeof code === 'string' ? `${code}: ${reason.message}` : reason.message;
}

/** Aborted some time after `signal`: what is in hand may come to an end. */
export function withGrace(signal: AbortSignal, graceMs: number): { readonly signal: AbortSignal; end(): void } {
  const late = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const begin = (): void => {
    timer = setTimeout(() => late.abort(), graceMs);
  };
  if (signal.aborted) begin();
  else signal.addEventListener('abort', begin, { once: true });
  return {
    signal: late.signal,
    end() {
      signal.removeEventListener('abort', begin);
      clearTimeout(timer);
    },
  };
}
