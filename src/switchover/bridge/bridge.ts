// A bridge calls, for events, an endpoint that nobody can change. It is a detached consumer whose handlers are calls:
//
//   intent committed ─▶ turn of the rate limit ─▶ call with Idempotency-Key ─▶ outcome and position committed
//                                                   │ 2xx ────────────────────▶ applied
//                                                   │ definitive 4xx ─────────▶ rejected, with the answer
//                                                   │ no answer, 408, 425, 429, 502, 503, 504 ─▶ waits, however long
//                                                   └ anything else ──────────▶ tried again, then parked (or halted)
//
// A crash between call and outcome leaves the intent: the call is made again with the same key, and reported (an alarm
// `uncertain`). So it is at least once, unless the endpoint heeds the key. Calls of stage `rpc` don't pass the bridge: its inbox
// doesn't know them, and key numbers would have holes there; order rests on the partition, and on draining before a flip.
import { defineConsumer, endedAs } from '../../consumer/index.ts';
import type { ConsumerDefinition, DetachedContext } from '../../consumer/index.ts';
import type { Database } from '../../database/index.ts';
import { invalidDefinition, TurnoutError } from '../../errors/index.ts';
import type { AnyEventDefinition, Ordering, Reaction, TurnoutEvent } from '../../event/index.ts';
import type { RetryPolicy } from '../../lifecycle/index.ts';
import { isDefinitiveOfBridged, isUnanswered, meaningOf } from '../calls/bridged-answer.ts';
import { callHeaders } from '../calls/call-headers.ts';
import type { RpcAnswer, RpcCall } from '../define-switchover.ts';
import { keptJson } from '../calls/kept-json.ts';
import { rateLimiter } from './rate-limit.ts';
import type { Rate, RateLimiter } from './rate-limit.ts';

export interface BridgeOptions {
  /** The consumer that moves, as the switchover names it; also the name of the group at the broker. */
  readonly name: string;
  /** As in the switchover. `'key'`: calls of one key in order, those behind a parked one wait. `'none'`: nobody waits for another. */
  readonly order: Ordering;
  /** Where it starts if nothing says so: `turnout switch <name> rpc` does. */
  readonly from: 'beginning' | 'now';
  /** `on(Event, (event, call) => …)` for each event type, as in the switchover: makes the call and gives its answer, whatever the status. */
  readonly calls: readonly Reaction<RpcCall, RpcAnswer>[];
  /**
   * Event types that go by call until their switchover is flipped. Default: all. An empty list for an endpoint that never was called
   * by the publisher: then every event is.
   */
  readonly inSwitchover?: readonly AnyEventDefinition[];
  /** Calls begun at most by this process: `burst` at once, `perSecond` from then on. Default: no limit. */
  readonly rateLimit?: Rate;
  /** Calls in flight at most, over all partitions of this process; within a partition one after the other. Default 4. */
  readonly concurrency?: number;
  /** The longest one call may take, in milliseconds. Default 10,000. */
  readonly timeoutMs?: number;
  /** Whether a 4xx refuses the effect for good. Default: as for a bridged switchover. */
  readonly isDefinitive?: (status: number) => boolean;
  /** For answers that say neither. Default: 5 attempts, 1 s to 60 s. */
  readonly retry?: Partial<RetryPolicy>;
  /** After the last attempt. Default `'park'`: set aside until an operator decides. */
  readonly onFailure?: 'park' | 'halt';
  /** How long the inbox keeps outcomes and answers. Default 30 days, in milliseconds. */
  readonly retentionMs?: number;
  /** After how long an intent without an outcome is taken to be left by a crash. Default 60,000 ms, or twice `timeoutMs` if that is more. */
  readonly leaseMs?: number;
  /** How long calls in flight may go on when the process stops. Default `timeoutMs` and a second. */
  readonly graceMs?: number;
}

/** A bridge as {@link defineBridge} made it: a consumer that `runConsumer` and `turnout bridge` run. */
export interface BridgeDefinition<Tx = unknown> extends ConsumerDefinition<Tx> {
  readonly bridge: { readonly order: Ordering; readonly rateLimit: Rate | undefined; readonly timeoutMs: number };
}

/**
 * Defines a process that consumes events and calls an endpoint that nobody can change: `turnout bridge <name>`, or
 * `runConsumer(bridge, …)` inside an app. `database` is the bridge's own, with the consumer's migrations: positions, intents and
 * outcomes live there. Throws TURNOUT_DEFINITION_INVALID with the path of the bad field.
 *
 * The endpoint is called at least once, with the same `Idempotency-Key` each time; docs/bridge.md says what that promises.
 *
 * @example
 * export const invoicing = defineBridge(pgDatabase(pool), {
 *   name: 'invoicing',
 *   order: 'key',
 *   from: 'now',
 *   rateLimit: { perSecond: 20, burst: 5 },
 *   calls: [on(OrderPlaced, (event, call) => rpcFetch(call, 'http://invoicing/invoices', { json: event.data }))],
 * });
 */
export function defineBridge<Tx>(database: Database<Tx>, options: BridgeOptions): BridgeDefinition<Tx> {
  const { name, order, from, calls, rateLimit, timeoutMs = 10_000, isDefinitive = isDefinitiveOfBridged } = options;
  if (order !== 'key' && order !== 'none')
    throw invalidDefinition('order', `Bridge ${name} has order ${JSON.stringify(order)}; it is 'key' or 'none'.`);
  if (!Number.isInteger(timeoutMs) || timeoutMs < 1 || timeoutMs > 600_000)
    throw invalidDefinition(
      'timeoutMs',
      `Bridge ${name} has timeoutMs ${timeoutMs}; it is a whole number up to 600,000.`,
    );
  if (
    rateLimit !== undefined &&
    !(rateLimit.perSecond > 0 && Number.isFinite(rateLimit.perSecond) && rateLimit.burst >= 1)
  )
    throw invalidDefinition(
      'rateLimit',
      `Bridge ${name} has a rate limit that lets nothing through: ${JSON.stringify(rateLimit)}.`,
    );
  if (!Array.isArray(calls) || calls.length === 0) throw invalidDefinition('calls', `Bridge ${name} has no calls.`);
  const unordered = calls.findIndex(({ event }) => order === 'key' && event.order !== 'key');
  if (unordered !== -1)
    throw invalidDefinition(
      `calls.${unordered}`,
      `Bridge ${name} is ordered by key, and ${calls[unordered]!.event.name} is not.`,
    );

  const limiter = rateLimiter(rateLimit);
  const caller = { name, timeoutMs, isDefinitive, limiter };
  const consumer = defineConsumer<Tx>(database, {
    name,
    from,
    mode: 'detached',
    keyNumbers: 'ignored',
    inSwitchover: options.inSwitchover ?? calls.map(({ event }) => event),
    handlers: calls.map((reaction) => ({
      // What needs no order must not wait behind a parked one of its key.
      event: order === 'none' ? { ...reaction.event, order: 'none' as const } : reaction.event,
      react: (event: TurnoutEvent<never>, context: DetachedContext) => call(caller, reaction, event, context),
    })),
    retry: { firstDelayMs: 1_000, maxDelayMs: 60_000, ...options.retry },
    graceMs: options.graceMs ?? timeoutMs + 1_000,
    // Whoever wrote an intent may wait for its turn, and then for the answer.
    leaseMs: options.leaseMs ?? Math.max(60_000, 2 * timeoutMs),
    ...(options.onFailure === undefined ? {} : { onFailure: options.onFailure }),
    ...(options.concurrency === undefined ? {} : { concurrency: options.concurrency }),
    ...(options.retentionMs === undefined ? {} : { retentionMs: options.retentionMs }),
  });
  return Object.freeze({ ...consumer, bridge: Object.freeze({ order, rateLimit, timeoutMs }) });
}

interface Caller {
  readonly name: string;
  readonly timeoutMs: number;
  readonly isDefinitive: (status: number) => boolean;
  readonly limiter: RateLimiter;
}

async function call(
  { name, timeoutMs, isDefinitive, limiter }: Caller,
  reaction: Reaction<RpcCall, RpcAnswer>,
  event: TurnoutEvent<never>,
  { signal, attempt, effectKey }: DetachedContext,
): Promise<unknown> {
  if (!(await limiter.turn(signal))) throw unavailable(name, 'the process stops');
  const answer = await answered(name, timeoutMs, signal, (bounded) =>
    reaction.react(event, {
      headers: callHeaders(name, event, undefined),
      signal: bounded,
      effectKey,
      attempt,
      timeoutMs,
    }),
  );
  const { status, headers, body } = answer;
  switch (meaningOf(status, isDefinitive)) {
    case 'done':
      return endedAs({ outcome: 'applied', answer: kept(answer) });
    case 'rejected':
      return endedAs({ outcome: 'rejected', answer: kept(answer), reason: `the endpoint answered ${status}` });
    case 'unavailable': {
      const pauseMs = retryAfterMs(headers);
      if (pauseMs !== undefined) limiter.pause(pauseMs);
      throw unavailable(name, `status ${status}`);
    }
    case 'failed':
      throw new TurnoutError('TURNOUT_HANDLER_FAILED', `The endpoint of ${name} answered ${status}.`, {
        details: { consumer: name, effectKey, status, body: textOf(body).slice(0, 500) },
      });
  }
}

/** One call, bounded in time whether or not the function heeds its signal. */
async function answered(
  name: string,
  timeoutMs: number,
  late: AbortSignal,
  make: (signal: AbortSignal) => Promise<RpcAnswer> | RpcAnswer,
): Promise<RpcAnswer> {
  const timeout = AbortSignal.timeout(timeoutMs);
  const signal = AbortSignal.any([late, timeout]);
  const over = new Promise<never>((_resolve, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason as Error), { once: true });
  });
  over.catch(() => undefined);
  try {
    const answer = await Promise.race([make(signal), over]);
    if (typeof answer?.status !== 'number' || typeof answer.headers !== 'object')
      throw new TurnoutError('TURNOUT_HANDLER_FAILED', `A call of ${name} gave no { status, headers, body }.`);
    return answer;
  } catch (error) {
    if (timeout.aborted) throw unavailable(name, `no answer within ${timeoutMs} ms`, error);
    if (late.aborted || isUnanswered(error)) throw unavailable(name, reasonOf(error), error);
    throw error;
  }
}

function unavailable(name: string, why: string, cause?: unknown): TurnoutError {
  return new TurnoutError('TURNOUT_ENDPOINT_UNAVAILABLE', `The endpoint of ${name} gives no answer (${why}).`, {
    details: { consumer: name },
    cause,
  });
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  return cause instanceof Error
    ? `${error.message}: ${cause.message || String((cause as { code?: unknown }).code)}`
    : error.message;
}

/** An hour at most: whoever names more has made a mistake, or is gone. */
const longestPauseMs = 3_600_000;

/** What an endpoint asks for in `Retry-After`: seconds, or a date. */
function retryAfterMs(headers: Readonly<Record<string, string>>, now = Date.now()): number | undefined {
  const text = Object.entries(headers).find(([name]) => name.toLowerCase() === 'retry-after')?.[1];
  if (text === undefined) return undefined;
  const ms = /^\d+$/.test(text.trim()) ? Number(text) * 1_000 : Date.parse(text) - now;
  return Number.isFinite(ms) && ms > 0 ? Math.min(ms, longestPauseMs) : undefined;
}

const maxKeptCharacters = 65_536;

/** What of an answer the inbox keeps, for those who look later why an effect was refused. */
function kept({ status, body }: RpcAnswer): { status: number; body: string | null } {
  // jsonb can't hold NUL.
  const text = textOf(body).replaceAll('\0', '\uFFFD');
  return { status, body: text.length > maxKeptCharacters ? null : text };
}

function textOf(body: unknown): string {
  return typeof body === 'string' ? body : (keptJson(body) ?? '');
}
