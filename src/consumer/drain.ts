// Events that were held, and can go on: early ones whose turn has come, and those behind a parked one that has had its
// effect. Any process of the consumer may do it: the effect key and the gate keep it from being done twice, so no
// partition has to be owned.
import { TurnoutError, isTurnoutError } from '../errors/index.ts';
import { headsBehind, hold, keysToDrain, nextHeld, release } from '../inbox/index.ts';
import type { Held, KeyOfGate } from '../inbox/index.ts';
import { retryDelayMs, sleep } from '../lifecycle/index.ts';
import { afterFailure, foreverMs } from './decide.ts';
import { arrivalOf, classify, describeError, holdKeyOf, perform } from './perform.ts';
import type { Performance, Runtime, Surroundings } from './perform.ts';
import { readMessage, toEvent } from './read-event.ts';

/** When a held event that failed may be tried again, by consumer process and effect key. */
const notBefore = new WeakMap<Runtime, Map<string, number>>();
const never = new AbortController().signal;
/** An event that was held is not bound to a partition. */
const unbound: Surroundings = {
  check: async () => ({ blocked: false, held: undefined }),
  move: async () => ({ blocked: false, held: undefined }),
};

/** Applies the held events of a numbered key for as long as the next number is there. */
export async function drainKey(runtime: Runtime, key: KeyOfGate): Promise<void> {
  const { database } = runtime.definition;
  for (;;) {
    const held = await nextHeld(database, key);
    if (held === undefined || !(await tryHeld(runtime, held))) return;
  }
}

/** Looks for held events that can go on, until `signal` is aborted: what a crash left, and what a call set free. */
export async function sweep(runtime: Runtime, everyMs: number, signal: AbortSignal): Promise<void> {
  const { definition, logger, inTurn } = runtime;
  const { database, name } = definition;
  while (await sleep(everyMs, signal)) {
    try {
      for (const key of await keysToDrain(database, name, 100)) {
        if (signal.aborted) return;
        await inTurn(() => drainKey(runtime, key));
      }
      for (const first of await headsBehind(database, name, 100)) {
        if (signal.aborted) return;
        await inTurn(() => tryHeld(runtime, first));
      }
    } catch (error) {
      // A halt is for good; everything else passes, and the sweep comes again.
      if (isTurnoutError(error, 'TURNOUT_HANDLER_FAILED')) throw error;
      logger.warn('The sweep of held events failed; it is tried again.', {
        consumer: name,
        error: describeError(error),
      });
    }
  }
}

/** Gives whether the event is out of the way: had its effect now or before. */
async function tryHeld(runtime: Runtime, held: Held): Promise<boolean> {
  const waits = notBefore.get(runtime) ?? new Map<string, number>();
  notBefore.set(runtime, waits);
  if ((waits.get(held.effectKey) ?? 0) > performance.now()) return false;
  waits.delete(held.effectKey);

  const { name, database } = runtime.definition;
  const { message } = held;
  const read = readMessage(name, message.topic, message.partition, message.offset, message);
  // What this version of the consumer can't read or handle stays for one that can.
  if (read.kind === 'malformed' || read.envelope.refused !== undefined) return false;
  const { envelope, effectKey } = read;
  const reaction = runtime.table.find(envelope.type, envelope.version);
  if (reaction === undefined) return false;
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
        signal: never,
        attempt: held.attempts + 1,
        // It was new when it was held, and a held event never expires.
        retentionMs: foreverMs,
        ownIntent: false,
        hasRun: false,
      },
      unbound,
    );
    if (performed === 'repeated') await release(database, name, effectKey);
    return performed === 'applied' || performed === 'repeated';
  } catch (error) {
    const delayMs = await afterHeldFailure(runtime, held, { envelope, reaction, effectKey }, error);
    if (delayMs !== undefined) waits.set(effectKey, performance.now() + delayMs);
    return false;
  }
}

/** Counts the failure of a held event, and parks it after the last attempt. Gives how long to wait before the next one, in milliseconds. */
async function afterHeldFailure(
  { definition, logger }: Runtime,
  held: Held,
  { envelope, reaction, effectKey }: Pick<Performance, 'envelope' | 'reaction' | 'effectKey'>,
  error: unknown,
): Promise<number | undefined> {
  const { name, database, retry } = definition;
  const unreadable = isTurnoutError(error, 'TURNOUT_EVENT_DATA_INVALID');
  const kind = unreadable ? 'handler' : await classify(database, error);
  if (kind === 'outage' || kind === 'fenced') throw error;
  if (kind === 'conflict') return retryDelayMs(retry, 1, Math.random());

  const attempts = held.attempts + 1;
  const next = afterFailure('handler', { handler: attempts, conflict: 0, outage: 0 }, unreadable ? 1 : retry.attempts);
  const delayMs = next.kind === 'retry' ? retryDelayMs(retry, next.delayOf, Math.random()) : undefined;
  const reason = describeError(error);
  const fields = { consumer: name, effectKey, type: envelope.type, key: envelope.key, attempts, error: reason };
  if (delayMs === undefined && definition.onFailure === 'halt') {
    throw new TurnoutError('TURNOUT_HANDLER_FAILED', `The held event ${effectKey} failed: ${reason}.`, {
      cause: error,
    });
  }
  const arrival = holdKeyOf(arrivalOf(name, { envelope, effectKey, turn: held.turn }), reaction.event);
  await hold(database, arrival, held.message, delayMs === undefined ? 'parked' : held.reason, {
    error: reason,
    attempts,
  });
  if (delayMs === undefined) logger.error('An event was parked; the later ones of its key wait.', fields);
  else logger.warn('An attempt at a held event failed; it is tried again.', { ...fields, retryAfterMs: delayMs });
  return delayMs;
}
