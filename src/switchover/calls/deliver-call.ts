// One call that is owed, from its first try to an answer that counts.
//
//   call ── outcome in the answer ───────────────► the row is deleted: done
//    │ ├─ 409 with Turnout-Error ────────────────► ask again until `patienceMs` have passed
//    │ ├─ 425 with Turnout-Last-Number ──────────► the missing events of the key, in order, through their calls; then again
//    │ ├─ 2xx without an outcome ────────────────► the row stays, an error is logged; again after a long while: each call may have
//    │ │                                           the effect once more, and only somebody can find out why
//    │ └─ anything else, no answer, too late ────► the row stays, and says when it is due: the sweeper goes on
//    └ a crash anywhere ─────────────────────────► the row stays
import type { Queryable } from '../../database/index.ts';
import { effectKeyOf } from '../../event/index.ts';
import type { Turn, TurnoutEvent } from '../../event/index.ts';
import { failpoint, retryDelayMs, sleep } from '../../lifecycle/index.ts';
import type { Logger, RetryPolicy } from '../../lifecycle/index.ts';
import { afterAnswer } from './after-answer.ts';
import type { Answered } from './after-answer.ts';
import { callHeaders } from './call-headers.ts';
import type { AnsweredOutcome } from './call-headers.ts';
import { callFor } from '../define-switchover.ts';
import type { RpcAnswer, SwitchoverDefinition } from '../define-switchover.ts';
import { settleCall } from '../replies/reply-store.ts';

/** A call that one event owes to one consumer. */
export interface OwedCall {
  readonly switchover: SwitchoverDefinition;
  readonly event: TurnoutEvent;
  readonly turn: Turn | undefined;
  /** Whether it was stamped in stage `shadow`. */
  readonly shadow: boolean;
  /** Counts from 1. */
  readonly attempt: number;
  /** Whether somebody may ask later what the endpoint has said: who it is stands in the database. */
  readonly keepsAnswer?: boolean;
}

/** How a call ended for now. `pending`: it is still owed, and the sweeper will make it again. */
export type Delivered =
  | { readonly kind: 'done'; readonly outcome: AnsweredOutcome; readonly rejected: boolean; readonly answer: RpcAnswer }
  | { readonly kind: 'pending'; readonly why: string };

export interface DeliveryOptions {
  readonly database: Queryable;
  readonly logger: Logger;
  /** How long to go on asking a consumer that says "running", in milliseconds. */
  readonly patienceMs: number;
  readonly retry: CallRetryPolicy;
  readonly random?: () => number;
  /** Told the outcome, mostly before it is written down: who waits for it need not wait for that. */
  readonly answered?: (delivered: Delivered) => void;
}

/** When a call without an outcome is made again. It is never given up, whatever `attempts` says. */
export interface CallRetryPolicy extends RetryPolicy {
  /**
   * Wait after a success that carries no outcome, in milliseconds, at least: the effect may have happened, and may happen
   * again with each call. Default 600,000.
   */
  readonly uncertainDelayMs?: number;
}

const defaultUncertainDelayMs = 600_000;

/** Waits before a call that was not answered is due again. */
export const defaultCallRetry: CallRetryPolicy = {
  attempts: Number.POSITIVE_INFINITY,
  firstDelayMs: 1_000,
  maxDelayMs: 60_000,
};

/** How often one delivery sends missing events before it leaves the rest to the next. */
const maxResends = 3;
/** From which attempt on a call that finds events of its key missing again is told of, and made less often. */
const missingForGood = 5;
/** How many missing events are read and sent at a time. */
const resendPage = 100;

/**
 * Makes a call until it has an outcome or has to wait for later, and keeps its row in turnout.rpc_delivery accordingly.
 * Never rejects: if the database can't be reached, the row stands as it was, and the sweeper goes on.
 */
export async function deliverCall(owed: OwedCall, options: DeliveryOptions): Promise<Delivered> {
  const { database, logger } = options;
  const effectKey = effectKeyOf(owed.switchover.consumer, owed.event.id);
  const result = await callUntilAnswered(owed, options).catch((error: unknown): CallResult => ({
    kind: 'pending',
    why: reasonOf(error),
    needsSomeone: false,
    soon: false,
  }));
  // A crash from here on leaves the row, and the sweeper is told that it was a repeat. Where replies can be asked for, one that
  // was given is there for everybody.
  if (result.kind === 'done' && !keepsAnswer(owed)) options.answered?.(result);
  try {
    if (result.kind === 'done') await forget(owed, result, database);
    else await postpone(owed, result, options);
  } catch (error) {
    logger.warn('The result of a call could not be written down; it will be made again.', { effectKey, error });
  }
  return result.kind === 'done' ? result : { kind: 'pending', why: result.why };
}

/**
 * The call is owed no more. Where replies are waited for, its answer is kept in the same statement. Else nothing waits for the
 * disk: if the server crashes in the next half second, the row is back, and its call is a repeat, which a bridged endpoint can't tell.
 */
async function forget(
  owed: OwedCall,
  done: { readonly outcome: AnsweredOutcome; readonly answer: RpcAnswer },
  database: Queryable,
): Promise<void> {
  const { switchover, event } = owed;
  const effectKey = effectKeyOf(switchover.consumer, event.id);
  const withoutDisk =
    switchover.endpoint === 'bridged' ? '' : `returning set_config('synchronous_commit', 'off', true)`;
  if (!keepsAnswer(owed))
    await database.query(`delete from turnout.rpc_delivery where effect_key = $1 ${withoutDisk}`, [effectKey]);
  else await settleCall(database, effectKey, done);
}

const keepsAnswer = (owed: OwedCall): boolean => owed.switchover.reply !== undefined || owed.keepsAnswer === true;

async function postpone(
  owed: OwedCall,
  result: PendingCall,
  { database, logger, retry, random = Math.random }: DeliveryOptions,
): Promise<void> {
  const effectKey = effectKeyOf(owed.switchover.consumer, owed.event.id);
  // A key that others are at comes free soon; a callee that is down does not.
  const usualMs = result.soon ? retry.firstDelayMs : retryDelayMs(retry, owed.attempt, random());
  const delayMs =
    result.uncertain === true ? Math.max(usualMs, retry.uncertainDelayMs ?? defaultUncertainDelayMs) : usualMs;
  const { rowCount } = await database.query(
    `update turnout.rpc_delivery d
        set due_at = clock_timestamp() + make_interval(secs => $2::float8 / 1000), attempts = greatest(d.attempts, $3), last_error = $4
      where d.effect_key = $1`,
    [effectKey, delayMs, owed.attempt, result.why.replaceAll('\0', '\uFFFD').slice(0, 2_000)],
  );
  // No row: another process has had the answer in the meantime.
  if (rowCount === 0) return;
  const fields = {
    switchover: owed.switchover.name,
    effectKey,
    attempt: owed.attempt,
    why: result.why,
    againInMs: delayMs,
  };
  if (result.uncertain === true)
    logger.error(
      'A call was answered with success, but without the consumer’s outcome: it may have its effect again each time. Look whether its endpoint is behind the gate, and who drops Turnout-Outcome on the way.',
      fields,
    );
  else if (result.needsSomeone) logger.error('A call is refused and will be until somebody has looked.', fields);
  else if (!result.soon) logger.warn('A call is still owed.', fields);
}

interface PendingCall {
  readonly kind: 'pending';
  readonly why: string;
  readonly needsSomeone: boolean;
  /** Not a failure of the callee: others are at the key. */
  readonly soon: boolean;
  readonly uncertain?: boolean | undefined;
}

type CallResult = Extract<Delivered, { kind: 'done' }> | PendingCall;

async function callUntilAnswered(owed: OwedCall, options: DeliveryOptions): Promise<CallResult> {
  const { patienceMs } = options;
  const began = performance.now();
  if (await waitsForEarlierCall(owed, options.database))
    return { kind: 'pending', why: 'an earlier call of the key is owed', needsSomeone: false, soon: true };
  let resends = 0;
  for (let pauseMs = 20; ; pauseMs = Math.min(pauseMs * 2, 500)) {
    const answered = await callOnce(owed);
    const next = afterAnswer(owed.turn, trusted(answered), owed.switchover);
    switch (next.kind) {
      case 'done':
        return {
          kind: 'done',
          outcome: next.outcome,
          rejected: next.rejected,
          answer: (answered as { answer: RpcAnswer }).answer,
        };
      case 'pending':
        return { ...next, soon: false };
      case 'poll':
        if (performance.now() - began + pauseMs > patienceMs)
          return { kind: 'pending', why: 'being applied', needsSomeone: false, soon: true };
        await sleep(pauseMs);
        break;
      case 'resend': {
        if (++resends > maxResends)
          return {
            kind: 'pending',
            why: 'events of the key are missing at the consumer, though they were sent to it: docs/inbox.md, “When a key waits”',
            needsSomeone: false,
            // What goes on and on is no race any more, and somebody is told.
            soon: owed.attempt < missingForGood,
          };
        const failure = await sendMissing(owed, next.after, options);
        if (failure !== undefined) return failure;
        break;
      }
    }
  }
}

/**
 * A wrapped endpoint says 425 to a call that overtakes another of its key; a bridged one can't, so the caller looks. The
 * earlier ones are visible: a key's next event can't be published before they are committed.
 */
async function waitsForEarlierCall({ switchover, event, turn }: OwedCall, database: Queryable): Promise<boolean> {
  if (switchover.endpoint !== 'bridged' || turn === undefined) return false;
  const { rowCount } = await database.query(
    `select from turnout.rpc_delivery d
      where d.consumer = $1 and d.source = $2 and d.topic = $3 and d.key = $4 and d.number is not null
        and (d.generation, d.number) < ($5::int, $6::bigint)
      limit 1`,
    [switchover.consumer, event.source, event.topic, event.key, turn.generation, turn.number],
  );
  return rowCount !== 0;
}

/** As it is; under the failpoint, one that says nothing of an outcome is made to. */
function trusted(answered: Answered): Answered {
  if (!failpoint('calls.trust-any-answer') || answered.kind === 'failed') return answered;
  return 'turnout-error' in answered.headers
    ? answered
    : { ...answered, headers: { 'turnout-outcome': 'applied', ...answered.headers } };
}

/** One request, bounded in time whether or not the function heeds its signal. */
async function callOnce(owed: OwedCall): Promise<Answered & { readonly answer?: RpcAnswer }> {
  const { switchover, event, turn, shadow, attempt } = owed;
  const reaction = callFor(switchover, event.type, event.version);
  if (reaction === undefined)
    return { kind: 'failed', why: `switchover ${switchover.name} has no call for ${event.type}` };
  const { timeoutMs } = switchover;
  const abort = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const tooLate = new Promise<Answered>((resolve) => {
    timer = setTimeout(() => {
      abort.abort(new DOMException(`The call took longer than ${timeoutMs} ms.`, 'TimeoutError'));
      resolve({ kind: 'failed', why: `no answer within ${timeoutMs} ms` });
    }, timeoutMs);
  });
  const call = async (): Promise<Answered & { readonly answer?: RpcAnswer }> => {
    try {
      const answer = await reaction.react(event as TurnoutEvent<never>, {
        headers: callHeaders(switchover.consumer, event, turn, { shadow }),
        signal: abort.signal,
        effectKey: effectKeyOf(switchover.consumer, event.id),
        attempt,
        timeoutMs,
      });
      if (typeof answer?.status !== 'number' || typeof answer.headers !== 'object') {
        return { kind: 'failed', why: 'the call gave no { status, headers, body }' };
      }
      return { kind: 'answer', status: answer.status, headers: lowerCase(answer.headers), answer };
    } catch (error) {
      return { kind: 'failed', why: reasonOf(error) };
    }
  };
  try {
    return await Promise.race([call(), tooLate]);
  } finally {
    clearTimeout(timer);
  }
}

/** Names in lower case are the contract; a function that forgot it must not make a call that is owed for ever. */
function lowerCase(headers: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]));
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // `fetch failed` alone tells nothing; its cause does.
  const cause =
    error.cause instanceof Error ? ` (${error.cause.message || String((error.cause as { code?: unknown }).code)})` : '';
  return `${error.message}${cause}`;
}

/**
 * Sends the events of a key between `after` and `owed`, in order, whichever route they were given: after a step back from
 * events to calls, the consumer may not have read them yet, and its late Kafka copies will be duplicates.
 * Gives why it could not, if it could not.
 */
async function sendMissing(owed: OwedCall, after: Turn, options: DeliveryOptions): Promise<CallResult | undefined> {
  const { database } = options;
  const until = owed.turn!.number;
  for (let last = after.number; last + 1 < until;) {
    const missing = await readMissing(owed, { generation: after.generation, number: last }, database);
    if (missing.length === 0) return gone(last + 1);
    for (const call of missing) {
      if (call.turn!.number !== last + 1) return gone(last + 1);
      const answered = await callOnce(call);
      const next = afterAnswer(call.turn, answered, call.switchover);
      if (next.kind !== 'done') {
        const why = next.kind === 'pending' ? next.why : next.kind;
        return {
          kind: 'pending',
          why: `number ${call.turn!.number} of the key before it: ${why}`,
          needsSomeone: next.kind === 'pending' && next.needsSomeone,
          soon: next.kind !== 'pending',
          uncertain: next.kind === 'pending' && next.uncertain,
        };
      }
      await forget(call, { outcome: next.outcome, answer: answered.answer! }, database);
      last = call.turn!.number;
    }
  }
  return undefined;
}

function gone(number: number): CallResult {
  return {
    kind: 'pending',
    why: `number ${number} of the key is missing at the consumer and no longer in the outbox`,
    needsSomeone: true,
    soon: false,
  };
}

async function readMissing(owed: OwedCall, after: Turn, database: Queryable): Promise<OwedCall[]> {
  const { switchover, event } = owed;
  const { rows } = await database.query<EventRow & { number: string }>(
    `select ${eventColumns}, o.number::text as number
       from turnout.missing_events($1, $2, $3, $4, $5, $6, $7, ${resendPage}) o
      order by o.number`,
    [switchover.consumer, event.source, event.topic, event.key, after.generation, after.number, owed.turn!.number],
  );
  return rows.map((row) => ({
    switchover,
    event: toEvent(row),
    turn: { generation: after.generation, number: Number(row.number) },
    // Nothing is compared while a key catches up.
    shadow: false,
    attempt: owed.attempt,
    keepsAnswer: true,
  }));
}

/** An outbox row as calls need it; found by its xid, the one index of the outbox, and its seq. */
export interface EventRow {
  id: string;
  source: string;
  topic: string;
  key: string | null;
  type: string;
  version: number;
  payload: string;
  headers: string | null;
  time: string;
}

export const eventColumns = `o.id::text as id, o.source, o.topic, o.aggregateid as key, o.type, o.version, o.payload::text as payload,
  o.headers::text as headers, to_json(o.occurred_at) #>> '{}' as time`;

export function toEvent(row: EventRow): TurnoutEvent {
  return {
    id: row.id,
    type: row.type,
    version: row.version,
    source: row.source,
    topic: row.topic,
    key: row.key,
    time: new Date(row.time),
    data: JSON.parse(row.payload) as unknown,
    headers: row.headers === null ? {} : (JSON.parse(row.headers) as Record<string, string>),
  };
}
