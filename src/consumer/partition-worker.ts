// Works through one partition that this process owns: event after event, each in a transaction that also moves the
// position. A failure leaves the position where it was; the source hands the event out again when its wait is over.
import type { Queryable } from '../database/index.ts';
import { TurnoutError, isTurnoutError } from '../errors/index.ts';
import type { Envelope, Stamp, Turn } from '../event/index.ts';
import type { Arrival, Effect } from '../inbox/index.ts';
import { retryDelayMs } from '../lifecycle/index.ts';
import { afterFailure, countSequence, foreverMs, planFor } from './decide.ts';
import type { Failures, Plan } from './decide.ts';
import { drainKey } from './drain.ts';
import { arrivalOf, classify, describeError, holdKeyOf, orBusy, perform, setAside, withGrace } from './perform.ts';
import type { Performance, Runtime, Surroundings } from './perform.ts';
import { advance, claim, countBegun, isAccepted, isKnown, noteSurvived, raiseAlarm } from './position-store.ts';
import type { Advance, Alarm, OwnedPartition } from './position-store.ts';
import { parkError, readMessage, toEvent } from './read-event.ts';
import type { ReadMessage } from './read-event.ts';
import { shadowArrivals } from './shadow-arrivals.ts';
import type { Batch, SourceMessage } from './source.ts';

export interface PartitionWorker {
  readonly owned: OwnedPartition;
  /** Works on a batch until it is done, time is up, or something has to be waited for. Rejects to halt the consumer. */
  work(batch: Batch): Promise<{ next: bigint; retryAfterMs?: number }>;
}

/** A batch is given back unfinished after this time, so that a slow partition doesn't hold up the fetching of others. */
const budgetMs = 2_000;
/** After being fenced: if the group still says the partition is ours, it is claimed again, and not at once. */
const reclaimAfterMs = 5_000;
/** While somebody else is at the same effect, or has its lock. */
const busyPolicy = { attempts: Number.POSITIVE_INFINITY, firstDelayMs: 250, maxDelayMs: 5_000 };
const outagePolicy = { attempts: Number.POSITIVE_INFINITY, firstDelayMs: 200, maxDelayMs: 10_000 };
/** An event that so many owners have begun with without telling how it ended is taken to end the process. */
const mostBegun = 5;

/** A message and what is to be done with it. */
interface Step {
  readonly message: SourceMessage;
  readonly envelope: Envelope | undefined;
  readonly effectKey: string;
  readonly source: string;
  readonly stamp: Stamp | undefined;
  readonly read: ReadMessage;
  readonly plan: Plan | { readonly kind: 'malformed'; readonly error: TurnoutError };
  /** Position and sequences behind this message, from the last commit on. */
  readonly behind: Advance;
}

interface Wait {
  readonly retryAfterMs: number;
}

export function partitionWorker(runtime: Runtime, owned: OwnedPartition, owner: string): PartitionWorker {
  const { definition, table, logger, inTurn } = runtime;
  const { name, database } = definition;
  const place = { consumer: name, topic: owned.topic, partition: owned.partition };
  const arrivals = shadowArrivals({ database, name, table, logger }, owned, definition.shadowSample);
  let trying = attemptsAt(-1n);
  /** Whether the next event is to be counted as begun: the first one of a claim, and one that has failed. */
  let toCount = true;
  /** The event that is counted as begun, and about whose end nothing is noted yet. */
  let counted: bigint | undefined;
  let fenced = false;

  async function work(batch: Batch): Promise<{ next: bigint; retryAfterMs?: number }> {
    if (fenced) return reclaim(batch.signal);
    const patience = withGrace(batch.signal, definition.graceMs);
    const deadline = performance.now() + budgetMs;
    let behind: Advance = { next: owned.next, sequences: new Map(), alarms: [] };
    try {
      for (const message of batch.messages) {
        if (message.offset < owned.next) continue;
        if (batch.signal.aborted || performance.now() > deadline) break;
        const step = look(message, behind);
        behind = step.behind;
        if (isShadowed(step)) await arrivals.look(message, step.read);
        if (step.plan.kind === 'observe') continue;
        await arrivals.note();
        const wait = await attempt(message.offset, () => inTurn(() => carryOut(step, patience.signal)), {
          step,
          late: patience.signal,
        });
        if (wait !== undefined) return { next: owned.next, ...wait };
        behind = { next: owned.next, sequences: new Map(), alarms: [] };
      }
      if (behind.next > owned.next) {
        await arrivals.note();
        const wait = await attempt(owned.next, () => inTurn(() => observe(behind)), undefined);
        if (wait !== undefined) return { next: owned.next, ...wait };
      }
      return { next: owned.next };
    } finally {
      patience.end();
    }
  }

  /** Reads a message, counts its sequence, and decides. Nothing is written. */
  function look(message: SourceMessage, before: Advance): Step {
    const read = readMessage(name, owned.topic, owned.partition, message.offset, message);
    const { envelope, effectKey } = read;
    const source = envelope?.source ?? (read.kind === 'malformed' ? read.source : 'unknown');
    const finding = countSequence(before.sequences.get(source) ?? owned.sequences.get(source), envelope?.sequence);
    const sequences = new Map(before.sequences);
    const alarms: Alarm[] = [...before.alarms];
    if (finding.kind === 'next' || finding.kind === 'hole') sequences.set(source, finding.state);
    if (finding.kind === 'hole') {
      const { generation } = finding.state;
      const detail = {
        ...place,
        offset: message.offset.toString(),
        source,
        generation,
        from: finding.from.toString(),
        to: finding.to.toString(),
      };
      alarms.push({ kind: 'sequence-hole', detail });
    }
    const behind = { next: message.offset + 1n, sequences, alarms };
    const step = { message, envelope, effectKey, source, stamp: undefined, read, behind };
    if (read.kind === 'malformed') {
      // What lies below the start is not ours to judge.
      const before = message.offset < owned.since || finding.kind === 'before-base';
      return {
        ...step,
        plan: before ? { kind: 'observe', why: 'before-since' } : { kind: 'malformed', error: read.error },
      };
    }
    // Without its number: this consumer has not seen what went by call, and would wait for that for ever.
    const stamp =
      read.stamp !== undefined && definition.keyNumbers === 'ignored' ? { ...read.stamp, turn: undefined } : read.stamp;
    const plan = planFor({
      offset: message.offset,
      since: owned.since,
      finding,
      stamp,
      inSwitchover: table.isInSwitchover(read.envelope.type),
      handler: table.standing(read.envelope.type, read.envelope.version),
      refused: read.envelope.refused,
    });
    return { ...step, stamp, plan };
  }

  /** Runs one attempt and says what to wait for, if it failed. Rejects to halt. */
  async function attempt(
    offset: bigint,
    run: () => Promise<Wait | undefined>,
    of: { readonly step: Step; readonly late: AbortSignal } | undefined,
  ): Promise<Wait | undefined> {
    if (trying.offset !== offset) trying = attemptsAt(offset);
    let wait: Wait | undefined;
    try {
      wait = await run();
    } catch (error) {
      if (error instanceof Halt) throw error.cause;
      wait = await failed(error, of?.step, of?.late.aborted === true);
    }
    if (wait !== undefined && of !== undefined) await survived(offset);
    return wait;
  }

  /** This process lives, so the event doesn't end processes: not to be taken for one that does when it is begun with again. */
  async function survived(offset: bigint): Promise<void> {
    const given = { offset, counted: counted === offset, failed: trying.failures.handler };
    if (await noteSurvived(database, owned, given).catch(() => false)) {
      toCount = true;
      counted = undefined;
    }
  }

  async function failed(error: unknown, step: Step | undefined, late: boolean): Promise<Wait | undefined> {
    const kind = await classify(database, error);
    const fields = {
      ...place,
      offset: (step?.message.offset ?? owned.next).toString(),
      type: step?.envelope?.type,
      effectKey: step?.effectKey,
    };
    if (kind === 'fenced') {
      fenced = true;
      logger.warn('The partition has a new owner; nothing was written.', fields);
      return { retryAfterMs: reclaimAfterMs };
    }
    if (late && kind === 'handler') {
      logger.warn('The time to finish was over; the event was rolled back, and is left to the next owner.', fields);
      return { retryAfterMs: busyPolicy.firstDelayMs };
    }
    const count = trying.failures;
    count[kind]++;
    if (kind === 'handler') trying.isMine = true;
    const next = afterFailure(kind, count, step === undefined ? Number.POSITIVE_INFINITY : definition.retry.attempts);
    const reason = describeError(error);
    if (next.kind === 'retry') {
      const retryAfterMs = retryDelayMs(
        next.policy === 'outage' ? outagePolicy : definition.retry,
        next.delayOf,
        Math.random(),
      );
      logger.warn(
        kind === 'outage'
          ? 'The database, or what the handler calls, does not answer; the event waits.'
          : 'An attempt failed; the event is tried again.',
        {
          ...fields,
          kind,
          failures: count[kind],
          retryAfterMs,
          error: reason,
        },
      );
      return { retryAfterMs };
    }
    return attemptToGiveUp(step!, error, count.handler + count.conflict);
  }

  async function attemptToGiveUp(step: Step, error: unknown, attempts: number): Promise<Wait | undefined> {
    try {
      return await giveUp(step, error, attempts);
    } catch (failure) {
      if (failure instanceof Halt) throw failure.cause;
      if (isTurnoutError(failure, 'TURNOUT_PARTITION_FENCED')) fenced = true;
      const retryAfterMs = fenced
        ? reclaimAfterMs
        : retryDelayMs(outagePolicy, ++trying.failures.outage, Math.random());
      logger.error('An event could not be set aside; it is tried again.', {
        ...place,
        effectKey: step.effectKey,
        error: describeError(failure),
        retryAfterMs,
      });
      return { retryAfterMs };
    }
  }

  /** Lets one event have its effect, or sets it aside. Gives what to wait for, if anything. */
  async function carryOut(step: Step, signal: AbortSignal): Promise<Wait | undefined> {
    const { plan, envelope, message } = step;
    if (plan.kind === 'malformed') return giveUp(step, plan.error, 0);
    if (plan.kind === 'park') return giveUp(step, parkError(plan.why, envelope!), 0);
    if (plan.kind === 'observe') return undefined;
    if (toCount) {
      const { begun, failed } = await countBegun(database, owned, message.offset);
      toCount = false;
      counted = message.offset;
      trying.failures.handler = Math.max(trying.failures.handler, failed);
      if (begun > mostBegun) {
        const what = `The process has ended ${begun - 1} times while it was at this event.`;
        return giveUp(step, new TurnoutError('TURNOUT_HANDLER_FAILED', what), begun - 1);
      }
    }
    // Numbered events are judged by their gate.
    let isNew = plan.sequence === 'new' && (!plan.stamped || definition.keyNumbers === 'ignored');
    if (plan.sequence === 'passed' && plan.turn === undefined) {
      if (await isAccepted(database, name, step.effectKey)) isNew = true;
      else if (!(await isKnown(database, name, step.effectKey, envelope!.time))) return unknownRepeat(step);
    }

    const reaction = table.find(envelope!.type, envelope!.version)!;
    let event: Performance['event'];
    try {
      event = await toEvent(reaction.event, envelope!);
    } catch (error) {
      if (!isTurnoutError(error, 'TURNOUT_EVENT_DATA_INVALID')) throw error;
      return giveUp(step, error, 0);
    }
    const { failures } = trying;
    const performed = await perform(
      runtime,
      {
        envelope: envelope!,
        reaction,
        event,
        message: { ...message, topic: owned.topic, partition: owned.partition },
        effectKey: step.effectKey,
        turn: plan.turn,
        signal,
        attempt: failures.handler + failures.conflict + 1,
        // A new sequence number is proof that it is no repeat, however old it is. A call may have brought a stamped one before.
        retentionMs: isNew ? foreverMs : definition.retentionMs,
        ownIntent: trying.ended !== undefined || trying.isMine,
        ended: trying.ended,
      },
      surroundings(step, plan.turn),
      (ended) => {
        trying.ended = ended;
      },
    );
    if (performed === 'busy') {
      const retryAfterMs = retryDelayMs(busyPolicy, ++trying.busy, Math.random());
      logger.warn('Somebody else is at the same effect, or holds the lock of its key; the event waits.', {
        ...place,
        offset: message.offset.toString(),
        effectKey: step.effectKey,
        key: message.key,
        retryAfterMs,
      });
      return { retryAfterMs };
    }
    counted = undefined;
    movedTo(step.behind);
    if (performed === 'applied' && plan.turn !== undefined) await drainAfter(envelope!, signal);
    return undefined;
  }

  function surroundings(step: Step, turn: Turn | undefined): Surroundings {
    const { key, source } = step.envelope!;
    const question = { effectKey: step.effectKey, source, key, hasNumber: turn !== undefined };
    const nothing: Advance = { next: owned.next, sequences: new Map(), alarms: [] };
    return {
      check: (tx) => advance(tx, owned, nothing, question),
      move: (tx) => advance(tx, owned, step.behind, question),
    };
  }

  async function drainAfter({ source, topic, key }: Envelope, late: AbortSignal): Promise<void> {
    try {
      await drainKey(runtime, { consumer: name, source, topic, key: key! }, late);
    } catch (error) {
      logger.warn('Draining held events failed; the sweep does it later.', {
        ...place,
        key,
        error: describeError(error),
      });
    }
  }

  async function observe(behind: Advance): Promise<undefined> {
    await advance(database, owned, behind);
    movedTo(behind);
  }

  /** Sets an event aside with its error, or halts, as the consumer's policy says. */
  async function giveUp(step: Step, error: unknown, attempts: number): Promise<Wait | undefined> {
    if (definition.onFailure === 'halt') {
      const what = `Event ${step.effectKey} at offset ${step.message.offset} of ${owned.topic}/${owned.partition} failed: ${describeError(error)}.`;
      throw await halt(
        isTurnoutError(error) ? error : new TurnoutError('TURNOUT_HANDLER_FAILED', what, { cause: error }),
        step,
      );
    }
    const turn = step.plan.kind === 'park' || step.plan.kind === 'apply' ? step.plan.turn : undefined;
    const { arrival, holdAs } = heldArrival(step, turn);
    const result = await orBusy(() =>
      database.transaction(async (tx) => {
        const queryable: Queryable = database.within(tx);
        const standing = await advance(queryable, owned, step.behind, {
          effectKey: arrival.effectKey,
          source: arrival.source,
          key: arrival.key,
          hasNumber: turn !== undefined,
        });
        if (standing.held !== undefined && standing.held !== 'early') return 'held';
        const message = { ...step.message, topic: owned.topic, partition: owned.partition };
        return setAside(queryable, message, holdAs, 'parked', { error: describeError(error), attempts });
      }),
    );
    if (result === 'busy') return { retryAfterMs: retryDelayMs(busyPolicy, ++trying.busy, Math.random()) };
    movedTo(step.behind);
    if (result === 'repeated') return undefined;
    logger.error('An event was parked; the later ones of its key wait.', {
      ...place,
      offset: step.message.offset.toString(),
      effectKey: step.effectKey,
      type: step.envelope?.type,
      key: step.message.key,
      attempts,
      error: describeError(error),
    });
  }

  function heldArrival(step: Step, turn: Turn | undefined): { arrival: Arrival; holdAs: Arrival } {
    const { envelope, effectKey, source, message } = step;
    if (envelope !== undefined) {
      const arrival = arrivalOf(name, { envelope, effectKey, turn });
      const reaction = table.find(envelope.type, envelope.version);
      // Of a type that isn't known here it is not known either whether its key orders: then it does.
      return { arrival, holdAs: reaction === undefined ? arrival : holdKeyOf(arrival, reaction.event) };
    }
    const arrival: Arrival = {
      consumer: name,
      effectKey,
      eventId: '',
      eventType: message.headers['ce_type'] ?? 'unknown',
      source,
      topic: owned.topic,
      key: message.key,
      occurredAt: new Date(0),
      path: 'event',
      turn: undefined,
    };
    return { arrival, holdAs: arrival };
  }

  /** It was here before by its sequence, and the inbox doesn't know it. Too old for the inbox: dropped. Else nobody knows what it means. */
  async function unknownRepeat(step: Step): Promise<undefined> {
    const { time, sequence } = step.envelope!;
    if (Date.now() - time.getTime() > definition.retentionMs) {
      return observe(step.behind);
    }
    const what = `Event ${step.effectKey} at offset ${step.message.offset} of ${owned.topic}/${owned.partition} has sequence ${sequence?.number}, which was passed before, and is not known.`;
    throw await halt(
      new TurnoutError('TURNOUT_UNKNOWN_REPEAT', what, {
        details: { ...place, offset: step.message.offset, effectKey: step.effectKey },
      }),
      step,
    );
  }

  async function halt(error: TurnoutError, step: Step): Promise<Halt> {
    const kind = error.code === 'TURNOUT_UNKNOWN_REPEAT' ? 'unknown-repeat' : 'halted';
    const detail = {
      ...place,
      offset: step.message.offset.toString(),
      effectKey: step.effectKey,
      type: step.envelope?.type,
      key: step.message.key,
      code: error.code,
      // For turnout.accept_repeat.
      eventId: step.envelope?.id,
      source: step.source,
      occurredAt: step.envelope?.time.toISOString(),
    };
    await raiseAlarm(database, name, { kind, detail });
    logger.error('The consumer halts; its position stays before this event.', { ...detail, error });
    return new Halt(error);
  }

  function movedTo(behind: Advance): void {
    owned.next = behind.next;
    owned.sequences = new Map([...owned.sequences, ...behind.sequences]);
    for (const { detail } of behind.alarms) logger.error('Events are missing: the sequence has a hole.', detail);
  }

  async function reclaim(signal: AbortSignal): Promise<{ next: bigint; retryAfterMs?: number }> {
    try {
      const [again] = await claim(database, name, owner, [owned], { logger, graceMs: definition.graceMs, signal });
      if (again === undefined) return { next: owned.next };
      fenced = false;
      toCount = true;
      counted = undefined;
      // Another owner may have begun meanwhile.
      trying.isMine = false;
      const { epoch, next, sequences } = again;
      Object.assign(owned, { epoch, next, sequences } satisfies Partial<OwnedPartition>);
      logger.info('The group still gives this partition to this process; it was claimed again.', {
        ...place,
        epoch: epoch.toString(),
      });
      return { next: owned.next };
    } catch (error) {
      logger.warn('A partition could not be claimed again.', { ...place, error: describeError(error) });
      return { next: owned.next, retryAfterMs: reclaimAfterMs };
    }
  }

  return { owned, work };
}

/** Whether stage shadow wants to know that a message came: its event had its effect by call. */
function isShadowed({ plan, stamp }: Step): boolean {
  return plan.kind === 'malformed' || (plan.kind === 'observe' && plan.why === 'route-rpc' && stamp?.shadow === true);
}

/** Ends the consumer: thrown past the handling of failures. */
class Halt extends Error {
  override readonly name = 'Halt';
  override readonly cause: TurnoutError;

  constructor(cause: TurnoutError) {
    super(cause.message);
    this.cause = cause;
  }
}

interface Trying {
  readonly offset: bigint;
  readonly failures: { -readonly [Kind in keyof Failures]: Failures[Kind] };
  /** What became of a detached handler, if only its outcome is still to be written. */
  ended: Effect | undefined;
  /** Whether this owner has seen an attempt fail: then an intent without an outcome is its own. */
  isMine: boolean;
  busy: number;
}

function attemptsAt(offset: bigint): Trying {
  return { offset, failures: { handler: 0, conflict: 0, outage: 0 }, ended: undefined, isMine: false, busy: 0 };
}
