// One call of stage shadow at the endpoint, inside the transaction of its effect:
//
//   savepoint → event handler → what it wrote and answered, or threw → all of it taken back
//             → old handler   → what it wrote and answered, or threw
//   after the answer: compare, and write what was found (recorder.ts)
//
// The old handler runs whatever came of the event handler, and its answer is the answer. What goes wrong in between is a failed
// comparison, with one exception: if the savepoint can't be taken back, nobody knows what the transaction holds, and the call
// fails as it would for a lost connection.
import { isPlanned, toEvent } from '../../consumer/index.ts';
import type { DetachedContext } from '../../consumer/index.ts';
import type { Database, Queryable, Rehearsed } from '../../database/index.ts';
import { isTurnoutError } from '../../errors/index.ts';
import type { TurnoutEvent } from '../../event/index.ts';
import { bucketOf } from '../../inbox/index.ts';
import { silentLogger, sleep } from '../../lifecycle/index.ts';
import type { Logger } from '../../lifecycle/index.ts';
import type { CalledEffect } from '../calls/call-headers.ts';
import type { HandlerAnswer } from '../endpoint/gate-answer.ts';
import type { Comparison } from './compare-with.ts';
import { gathering } from './describe-effect.ts';
import { shadowRecorder } from './recorder.ts';
import type { Finding, Observed } from './recorder.ts';

/** One call of stage shadow. */
export interface ShadowedCall<Tx> {
  /** Runs the old handler in the transaction `tx`, and compares it with the event handler if the call is in the sample. */
  run(tx: Tx, handler: () => Promise<HandlerAnswer>): Promise<HandlerAnswer>;
  /**
   * To be called once the transaction is over: the effect was had now (and not before), the old handler refused it, or gave no
   * answer that says so; `lost`: something failed around it, which says nothing of the handler.
   */
  ended(how: 'applied' | 'rejected' | 'no outcome' | 'lost'): void;
}

/** Makes what an endpoint asks for each call: undefined for calls that were not stamped in stage shadow. */
export function endpointShadow<Tx, Request>(
  database: Database<Tx>,
  consumer: string,
  comparison: Comparison<Tx, Request> | undefined,
  logger: Logger = silentLogger,
): (called: CalledEffect, request: Request) => ShadowedCall<Tx> | undefined {
  const recorder = shadowRecorder(database, consumer, comparison, logger);
  let running = 0;

  return (called, request) => {
    if (!called.shadow) return undefined;
    const { effectKey, eventType } = called;
    let finding: Finding | undefined;
    let variant = '';
    const isSampled = comparison !== undefined && bucketOf(`${effectKey} decision`) < comparison.sample;

    async function run(tx: Tx, handler: () => Promise<HandlerAnswer>): Promise<HandlerAnswer> {
      finding = undefined;
      if (!isSampled) return handler();
      if (running >= comparison.concurrency) {
        finding = { kind: 'skipped' };
        return handler();
      }
      running++;
      let rehearsal: Rehearsal;
      try {
        rehearsal = await rehearse(database, comparison, called, request);
      } finally {
        running--;
      }
      variant = rehearsal.variant;
      if (rehearsal.kind !== 'observed') {
        finding = rehearsal.kind === 'skipped' ? { kind: 'skipped' } : { kind: 'failed', why: rehearsal.why };
        return handler();
      }
      const { actual } = rehearsal;
      const seen = await observe(database.within(tx), handler, actual, comparison);
      finding =
        seen.expected === undefined
          ? { kind: 'failed', why: 'what the old handler wrote could not be read in time' }
          : { kind: 'compared', expected: seen.expected, actual };
      if ('error' in seen) throw seen.error;
      return seen.answer;
    }

    return {
      run,
      ended(how) {
        if (how === 'applied' || how === 'rejected') recorder.called(effectKey, eventType);
        if (finding === undefined) return;
        if (finding.kind === 'compared' && how !== 'applied' && finding.expected.error === undefined) {
          if (how === 'lost') return;
          // An answer that refuses, or says nothing, is the old handler's failure.
          finding = { ...finding, expected: { error: { name: 'Refused', code: null, message: how } } };
        }
        recorder.found({ effectKey, eventType, variant, finding });
      },
    };
  };
}

type Rehearsal = { readonly variant: string } & (
  | { readonly kind: 'observed'; readonly actual: Observed }
  | { readonly kind: 'failed'; readonly why: string }
  | { readonly kind: 'skipped' }
);

/** The event can't be had, or nobody handles it: there is nothing to compare. */
class NothingToCompare extends Error {}

/** What the comparison was given (`variant`, `eventOf`) has failed: no fault of the event handler. */
class GivenFailed extends Error {}

async function rehearse<Tx, Request>(
  database: Database<Tx>,
  comparison: Comparison<Tx, Request>,
  called: CalledEffect,
  request: Request,
): Promise<Rehearsal> {
  const { timeoutMs, maxBytes } = comparison;
  const late = new AbortController();
  let variant = '';
  const rehearsed = await database.rehearse(
    async (tx): Promise<Observed> => {
      const { event, reaction } = await eventOf(comparison, called, request);
      variant = variantOf(comparison, event);
      const context = { tx, signal: late.signal, attempt: 1, effectKey: called.effectKey } satisfies DetachedContext & {
        tx: Tx;
      };
      if (isPlanned(reaction)) return { effects: [...(await reaction.plan(event, context as never))] };
      const queryable = database.within(tx);
      await startCapture(queryable, maxBytes);
      const answer = await reaction.react(event, context as never);
      // What would fail at the commit fails here.
      await queryable.query('set constraints all immediate');
      return { captured: await endCapture(queryable), ...(comparison.answer && isAnswer(answer) ? { answer } : {}) };
    },
    { timeoutMs },
  );
  late.abort();
  return { variant, ...judgeRehearsal(rehearsed) };
}

/** A handler in one line returns what its statement gave: the result of a library, or rows. */
function isAnswer(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null;
}

type WithoutVariant<Each> = Each extends unknown ? Omit<Each, 'variant'> : never;

function judgeRehearsal(rehearsed: Rehearsed<Observed>): WithoutVariant<Rehearsal> {
  if (rehearsed.kind === 'done') return { kind: 'observed', actual: rehearsed.result };
  if (rehearsed.kind === 'late') return { kind: 'failed', why: 'the event handler took too long' };
  const { error } = rehearsed;
  if (error instanceof GivenFailed) return { kind: 'failed', why: error.message };
  if (error instanceof NothingToCompare) return { kind: 'skipped' };
  const why = ownFailure(error);
  return why === undefined ? { kind: 'observed', actual: { error: told(error) } } : { kind: 'failed', why };
}

/** Cancelled by its time-out, no lock in time, deadlock, serialization failure, connection lost: the moment's doing or the rehearsal's, not the handler's. */
const ownStates = /^(?:57014|55P03|40P01|40001|08\w{3}|57P0\d)$/;

function ownFailure(error: unknown): string | undefined {
  if (isTurnoutError(error) && error.details['rehearsal'] === true) return error.message;
  const { code } = told(error);
  return code !== null && ownStates.test(code) ? `the event handler failed with ${code}` : undefined;
}

function told(error: unknown): NonNullable<Observed['error']> {
  const inner = (error as { driverError?: unknown } | undefined)?.driverError ?? error;
  const { name, code, message } = (typeof inner === 'object' && inner !== null ? inner : {}) as Record<string, unknown>;
  return {
    name: typeof name === 'string' ? name.slice(0, 100) : 'Error',
    code: typeof code === 'string' ? code.slice(0, 100) : null,
    message: String(message ?? inner).slice(0, 1_000),
  };
}

async function eventOf<Tx, Request>(
  { table, eventOf: ask }: Comparison<Tx, Request>,
  { eventId, eventType, source, topic, key, occurredAt, eventData }: CalledEffect,
  request: Request,
): Promise<{ event: TurnoutEvent<never>; reaction: NonNullable<ReturnType<typeof table.find>> }> {
  const given = eventData ?? (await askFor(ask, request));
  if (given === undefined) throw new NothingToCompare('The event did not come with the call.');
  const reaction = table.find(eventType, given.version);
  if (reaction === undefined) throw new NothingToCompare(`Nobody handles ${eventType} v${given.version}.`);
  const envelope = {
    id: eventId,
    type: eventType,
    version: given.version,
    source,
    topic,
    key,
    time: occurredAt,
    payload: JSON.stringify(given.data),
    seq: undefined,
    sequence: undefined,
    routes: undefined,
    headers: {},
    refused: undefined,
  };
  return { event: await toEvent(reaction.event, envelope), reaction };
}

async function askFor<Request>(ask: Comparison<unknown, Request>['eventOf'], request: Request) {
  try {
    return await ask?.(request);
  } catch (error) {
    throw new GivenFailed(`eventOf failed: ${String(error)}`);
  }
}

function variantOf<Tx, Request>({ variant }: Comparison<Tx, Request>, event: TurnoutEvent<never>): string {
  try {
    return variant(event).slice(0, 100);
  } catch (error) {
    throw new GivenFailed(`variant failed: ${String(error)}`);
  }
}

type Seen =
  | { readonly expected: Observed | undefined; readonly answer: HandlerAnswer }
  | { readonly expected: Observed; readonly error: unknown };

/** Runs the old handler and watches what it does. Built-in functions only: nothing here may fail where the call would not. */
async function observe<Tx, Request>(
  queryable: Queryable,
  handler: () => Promise<HandlerAnswer>,
  actual: Observed,
  { maxBytes, timeoutMs }: Comparison<Tx, Request>,
): Promise<Seen> {
  const compares = actual.captured !== undefined;
  if (compares) await startCapture(queryable, maxBytes);
  const effects: unknown[] = [];
  let answer: HandlerAnswer;
  try {
    answer = await gathering(effects, handler);
  } catch (error) {
    return { expected: { error: told(error) }, error };
  }
  const expected: Observed = { answer: bodyOf(answer), ...(actual.effects === undefined ? {} : { effects }) };
  if (!compares) return { expected, answer };
  // A handler that has left a transaction of its own open keeps the connection; whoever commits finds that out.
  const waited = new AbortController();
  const captured = await Promise.race([
    endCapture(queryable).catch(() => undefined),
    sleep(timeoutMs, waited.signal).then(() => undefined),
  ]);
  waited.abort();
  return { expected: captured === undefined ? undefined : { ...expected, captured }, answer };
}

async function startCapture(queryable: Queryable, maxBytes: number): Promise<void> {
  await queryable.query("select set_config('turnout.captured', '', true), set_config('turnout.capture', $1, true)", [
    String(maxBytes),
  ]);
}

async function endCapture(queryable: Queryable): Promise<string> {
  const { rows } = await queryable.query<{ captured: string | null }>(
    "select current_setting('turnout.captured', true) as captured, set_config('turnout.capture', '', true)",
  );
  return rows[0]!.captured ?? '';
}

/** What the old handler answered, as the event handler would give it: JSON if it is some. */
function bodyOf({ headers, body }: HandlerAnswer): unknown {
  const text = body.toString();
  const type = String(headers['content-type'] ?? '');
  if (!/\bjson\b/i.test(type)) return text;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}
