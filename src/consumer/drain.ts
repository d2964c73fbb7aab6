// Events that were held, and can go on: early ones whose turn has come, and those behind a parked one that has had its
// effect. Any process of the consumer may do it: the effect key and the gate keep it from being done twice, so no
// partition has to be owned.
import { TurnoutError, isTurnoutError } from '../errors/index.ts';
import { heldThatCanGoOn, nextHeld, noteHeldFailure, release } from '../inbox/index.ts';
import type { Held, KeyOfGate } from '../inbox/index.ts';
import { retryDelayMs, silentLogger, sleep } from '../lifecycle/index.ts';
import type { Logger } from '../lifecycle/index.ts';
import { afterFailure, foreverMs } from './decide.ts';
import type { ConsumerDefinition } from './define-consumer.ts';
import { classify, describeError, perform, withGrace } from './perform.ts';
import type { Runtime, Surroundings } from './perform.ts';
import { handlerTable, parkError, readMessage, toEvent } from './read-event.ts';

/** When a held event that failed may be tried again, by consumer process and effect key. */
const notBefore = new WeakMap<Runtime, Map<string, number>>();
const never = new AbortController().signal;
/** An event that was held is not bound to a partition. */
const unbound: Surroundings = {
  check: async () => ({ blocked: false, held: undefined }),
  move: async () => ({ blocked: false, held: undefined }),
};

/** Applies the held events of a key for as long as the next one can go on, or until `late` is aborted, as their handlers are told. */
export async function drainKey(runtime: Runtime, key: KeyOfGate, late: AbortSignal): Promise<void> {
  const { database } = runtime.definition;
  while (!late.aborted) {
    const held = await nextHeld(database, key);
    if (held === undefined || !(await tryHeld(runtime, held, late))) return;
  }
}

/**
 * Gives a function that applies the held events of a key for as long as the next one can go on: the `drain` of an endpoint
 * of the same consumer, so that events behind a call don't wait for the sweep of the consumer's process, which goes on as the backstop.
 * It rejects with what stands in its way: an outage, TURNOUT_HANDLER_FAILED if the consumer is to halt,
 * TURNOUT_DEFINITION_INVALID for a key of another consumer. `logger` hears of handlers that fail; by default nobody does.
 *
 * @example
 * const endpoint = createEndpoint({ consumer: 'loyalty', database, order: 'key', drain: drainHeld(loyalty, { logger: jsonLogger }) });
 */
export function drainHeld<Tx>(
  definition: ConsumerDefinition<Tx>,
  { logger = silentLogger }: { readonly logger?: Logger } = {},
): (place: KeyOfGate) => Promise<void> {
  const runtime: Runtime = { definition, table: handlerTable(definition), logger, inTurn: (work) => work() };
  return async (place) => {
    if (place.consumer !== definition.name) {
      throw new TurnoutError(
        'TURNOUT_DEFINITION_INVALID',
        `Held events of ${place.consumer} can't be applied with the definition of ${definition.name}.`,
        { details: { path: 'drain' } },
      );
    }
    await drainKey(runtime, place, never);
  };
}

/** Looks for held events that can go on, until `signal` is aborted: what a crash left, and what a call or an operator set free. */
export async function sweep(runtime: Runtime, everyMs: number, signal: AbortSignal): Promise<void> {
  const { definition, logger } = runtime;
  const patience = withGrace(signal, definition.graceMs);
  try {
    while (await sleep(everyMs, signal)) {
      try {
        await sweepOnce(runtime, signal, patience.signal);
      } catch (error) {
        // A halt is for good; everything else passes, and the sweep comes again.
        if (isTurnoutError(error, 'TURNOUT_HANDLER_FAILED')) throw error;
        logger.warn('The sweep of held events failed; it is tried again.', {
          consumer: definition.name,
          error: describeError(error),
        });
      }
    }
  } finally {
    patience.end();
  }
}

const pageSize = 100;

/** Goes through all that can go on, page by page: those that fail, however many, must not keep it from the others. */
async function sweepOnce(runtime: Runtime, signal: AbortSignal, late: AbortSignal): Promise<void> {
  const { definition, inTurn } = runtime;
  const { database, name } = definition;
  for (let after = 0n, isLast = false; !isLast;) {
    const page = await heldThatCanGoOn(database, name, { after, limit: pageSize });
    for (const held of page) {
      if (signal.aborted) return;
      const { source, key, message } = held;
      await inTurn(async () => {
        if (key === null) await tryHeld(runtime, held, late);
        else await drainKey(runtime, { consumer: name, source, topic: message.topic, key }, late);
      });
    }
    isLast = page.length < pageSize;
    after = page.at(-1)?.id ?? after;
  }
}

/** Gives whether the event is out of the way: had its effect now or before. */
async function tryHeld(runtime: Runtime, held: Held, late: AbortSignal): Promise<boolean> {
  const waits = notBefore.get(runtime) ?? new Map<string, number>();
  notBefore.set(runtime, waits);
  if ((waits.get(held.effectKey) ?? 0) > performance.now()) return false;
  waits.delete(held.effectKey);

  const { name, database, retry } = runtime.definition;
  const { message } = held;
  const read = readMessage(name, message.topic, message.partition, message.offset, message);
  const reaction =
    read.kind === 'malformed' ? undefined : runtime.table.find(read.envelope.type, read.envelope.version);
  if (read.kind === 'malformed' || read.envelope.refused !== undefined || reaction === undefined) {
    const why = read.envelope?.refused === undefined ? 'handler-missing' : 'refused';
    await heldFailed(runtime, held, read.kind === 'malformed' ? read.error : parkError(why, read.envelope), true);
    return false;
  }
  const { envelope, effectKey } = read;
  try {
    const event = await toEvent(reaction.event, envelope);
    const performed = await perform(
      runtime,
      {
        envelope,
        reaction,
        event,
        message,
        effectKey,
        turn: held.turn,
        signal: late,
        attempt: held.attempts + 1,
        // It was new when it was held, and a held event never expires.
        retentionMs: foreverMs,
        ownIntent: false,
        ended: undefined,
      },
      unbound,
    );
    if (performed === 'repeated') await release(database, name, effectKey);
    return performed === 'applied' || performed === 'repeated';
  } catch (error) {
    const isUnreadable = isTurnoutError(error, 'TURNOUT_EVENT_DATA_INVALID');
    const kind = isUnreadable ? 'handler' : await classify(database, error);
    if (kind === 'outage' || kind === 'fenced') throw error;
    // Its time was over; that is no failure of its own.
    if (late.aborted) return false;
    const delayMs =
      kind === 'conflict'
        ? retryDelayMs(retry, 1, Math.random())
        : await heldFailed(runtime, held, error, isUnreadable);
    if (delayMs !== undefined) waits.set(effectKey, performance.now() + delayMs);
    return false;
  }
}

/**
 * Counts the failure of a held event, and parks it after the last attempt, or at once if it is `hopeless`. Gives how long to
 * wait before the next one, in milliseconds.
 */
async function heldFailed(
  { definition, logger }: Runtime,
  held: Held,
  error: unknown,
  isHopeless: boolean,
): Promise<number | undefined> {
  const { name, database, retry } = definition;
  const { effectKey, key, message } = held;
  const attempts = held.attempts + 1;
  const next = afterFailure('handler', { handler: attempts, conflict: 0, outage: 0 }, isHopeless ? 1 : retry.attempts);
  const delayMs = next.kind === 'retry' ? retryDelayMs(retry, next.delayOf, Math.random()) : undefined;
  const reason = describeError(error);
  const fields = { consumer: name, effectKey, type: message.headers['ce_type'], key, attempts, error: reason };
  if (delayMs === undefined && definition.onFailure === 'halt') {
    throw new TurnoutError('TURNOUT_HANDLER_FAILED', `The held event ${effectKey} failed: ${reason}.`, {
      cause: error,
    });
  }
  await noteHeldFailure(database, name, effectKey, {
    reason: delayMs === undefined ? 'parked' : held.reason,
    error: reason,
    attempts,
  });
  if (delayMs === undefined) logger.error('An event was parked; the later ones of its key wait.', fields);
  else logger.warn('An attempt at a held event failed; it is tried again.', { ...fields, retryAfterMs: delayMs });
  return delayMs;
}
