// The gate in front of an old endpoint: the framework-neutral part of `turnout/express` and its like.
//
//   no Turnout headers     → as today (or 428 with `unkeyed: 'refuse'`)
//   not authenticated      → 401, malformed → 400: no outcome, so the call stays owed
//   Turnout headers        → one transaction: apply() around the old handler, whose answer is held back until the commit
//       2xx                → applied      kept with the answer, and given again to a repeat
//       400, 404, 410, 422 → rejected     what it wrote is rolled back; the key number is consumed
//       all else, a throw  → rolled back, no outcome: the call will be made again
//       running / early    → looks again for 250 ms, holding no lock and no transaction; then 409 / 425
//       another body       → 422
import { AsyncLocalStorage } from 'node:async_hooks';
import { createHash } from 'node:crypto';
import type { Database } from '../../database/index.ts';
import { invalidDefinition, isTurnoutError, TurnoutError } from '../../errors/index.ts';
import { isName } from '../../event/index.ts';
import type { Ordering } from '../../event/index.ts';
import { apply, defaultRetentionMs, ensureInboxPartition } from '../../inbox/index.ts';
import type { Arrival, Effect, KeyOfGate, Verdict } from '../../inbox/index.ts';
import { silentLogger, sleep } from '../../lifecycle/index.ts';
import type { Logger } from '../../lifecycle/index.ts';
import { callerRecorder } from './callers.ts';
import type { NotedCall } from './callers.ts';
import { hasCallHeaders, readCallHeaders } from '../calls/call-headers.ts';
import type { CalledEffect } from '../calls/call-headers.ts';
import { endpointShadow } from '../shadow/index.ts';
import type { Comparison, ShadowedCall } from '../shadow/index.ts';
import { pauseBeforeNextLook } from './early-wait.ts';
import { answerTo, handlerAnswer, outcomeOf, refusal } from './gate-answer.ts';
import type { GateAnswer, HandlerAnswer } from './gate-answer.ts';

export type { GateAnswer, HandlerAnswer } from './gate-answer.ts';

export interface EndpointOptions<Tx, Request> {
  /** The consumer whose effects the endpoint has. */
  readonly consumer: string;
  /** The consumer's own database: what the old handler writes there is part of the transaction, if its pool is joined. */
  readonly database: Database<Tx>;
  /** As in the switchover: `'key'` if effects of one key happen in order. */
  readonly order: Ordering;
  /**
   * Whether a request may carry Turnout's headers: they say that an effect has happened before, or is the next one. By
   * default everybody's do; give one unless the network lets only the publisher in. If it throws, it has said no.
   */
  readonly authenticate?: (request: Request) => boolean | Promise<boolean>;
  /** What becomes of calls without Turnout's headers: `'allow'` (default) as today, `'refuse'` with 428. */
  readonly unkeyed?: 'allow' | 'refuse';
  /** Applies held events of a key whose turn has come: `drainHeld(definition)`. Without it, the consumer's own process does, a little later. */
  readonly drain?: (place: KeyOfGate) => Promise<unknown>;
  /** How long the inbox keeps outcomes, in milliseconds. Default 30 days. */
  readonly retentionMs?: number;
  /** How long a call waits for the events of its key before it, in milliseconds. Default 250. */
  readonly earlyWaitMs?: number;
  /** How long the old handler may take, in milliseconds, before it is rolled back. Default 60,000. */
  readonly handlerTimeoutMs?: number;
  /** The largest answer that is held back, in bytes. Default 10 MB; a larger one is rolled back. */
  readonly maxAnswerBytes?: number;
  /** The largest request that is read before its handler reads it, to tell it from others, in bytes. Default 50 MB; a larger one is refused (413). */
  readonly maxRequestBytes?: number;
  /** The largest answer body that is kept for repeats, in bytes. Default 64 kB; a repeat of a larger one has no body. */
  readonly maxKeptBytes?: number;
  /**
   * Whether a 4xx of the handler refuses the effect for good (`rejected`); otherwise the call is made again. Default: 400, 404, 410
   * and 422, and of gRPC the codes that are in docs/endpoints.md. For a handler that means it when it says 409, or that may take
   * back its 404.
   */
  readonly isDefinitive?: (status: number) => boolean;
  /** In stage shadow: what the old handler does is compared with what the handlers of this consumer would do. Never with the answer at stake. */
  readonly shadow?: Comparison<Tx, Request>;
  /**
   * Which service a call without Turnout's headers comes from, for `turnout switch cleanup`; by default its user agent. Such calls
   * are counted by endpoint, service and address.
   */
  readonly caller?: (request: Request) => string | undefined;
  /** False: calls are not counted, and nobody can tell who would miss the endpoint. Default true. */
  readonly recordCallers?: boolean;
  readonly logger?: Logger;
}

/** A request as an adapter sees it. */
export interface GateRequest<Request> {
  readonly original: Request;
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  /** What was called, such as `POST /confirmations` or `mail.Sender/Send`: the route, without values from the path. */
  readonly endpoint?: string | undefined;
  /** Where the call came from: the remote address, as the framework tells it. */
  readonly address?: string | undefined;
  /** What tells one body from another: the parsed one if it is JSON, else its bytes. */
  body(): Promise<unknown>;
}

/** The gate of one old endpoint; adapters such as `turnout/express` put it before the handler. */
export interface Endpoint<Request = unknown> {
  readonly consumer: string;
  readonly maxAnswerBytes: number;
  readonly maxRequestBytes: number;
  readonly handlerTimeoutMs: number;
  /** Decides about a request; `handler` runs the old handler inside the transaction. Never rejects. */
  answer(request: GateRequest<Request>, handler: () => Promise<HandlerAnswer>): Promise<GateAnswer>;
}

/**
 * Makes the gate of an old endpoint. Throws TURNOUT_DEFINITION_INVALID.
 *
 * @example
 * const endpoint = createEndpoint({ consumer: 'email', database: pgDatabase(pool), order: 'none', authenticate: hasServiceToken });
 * app.post('/confirmations', switchedOver(endpoint), sendConfirmation);
 */
export function createEndpoint<Tx, Request = unknown>(options: EndpointOptions<Tx, Request>): Endpoint<Request> {
  const { consumer, order, unkeyed = 'allow', logger = silentLogger } = options;
  if (!isName(consumer))
    throw invalidDefinition('consumer', `${JSON.stringify(consumer)} can't be the name of a consumer.`);
  if (order !== 'key' && order !== 'none')
    throw invalidDefinition(
      'order',
      `The endpoint of ${consumer} has order ${JSON.stringify(order)}; it is 'key' or 'none'.`,
    );
  if (options.shadow !== undefined && options.shadow.consumer !== consumer)
    throw invalidDefinition(
      'shadow',
      `The endpoint of ${consumer} can't be compared with consumer ${options.shadow.consumer}.`,
    );
  const shadowed = endpointShadow(options.database, consumer, options.shadow, logger);

  const recorder = options.recordCallers === false ? undefined : callerRecorder(options.database, consumer, { logger });

  async function answer(request: GateRequest<Request>, handler: () => Promise<HandlerAnswer>): Promise<GateAnswer> {
    if (!hasCallHeaders(request.headers)) {
      recorder?.note({ ...placeOf(request), keyed: false, service: serviceOf(options.caller, request) });
      return unkeyed === 'allow'
        ? { kind: 'pass' }
        : refusal(428, 'TURNOUT_CALL_UNKEYED', 'The call has no Turnout headers.');
    }
    if (!(await isAuthentic(options.authenticate, request.original))) {
      return refusal(401, 'TURNOUT_UNAUTHENTICATED', 'Turnout headers of an unknown caller.');
    }
    recorder?.note({ ...placeOf(request), keyed: true });
    if (around.getStore()?.open === true)
      return refusal(
        500,
        'TURNOUT_GATE_NESTED',
        `The gate of ${consumer} stands behind another one, in its transaction.`,
      );
    let arrival: Arrival;
    let shadow: ShadowedCall<Tx> | undefined;
    try {
      const called = readArrival(request, consumer, order);
      shadow = shadowed(called, request.original);
      arrival = { ...called, path: 'rpc', requestHash: hashOf(await request.body()) };
    } catch (error) {
      if (isTurnoutError(error, 'TURNOUT_EFFECT_KEY_REUSED')) return refusal(422, error.code, error.message);
      if (isTurnoutError(error, 'TURNOUT_REQUEST_TOO_LARGE')) return refusal(413, error.code, error.message);
      if (isTurnoutError(error)) return refusal(400, error.code, error.message);
      return refusal(400, 'TURNOUT_CALL_HEADERS_MALFORMED', `The body can't be read: ${String(error)}`);
    }
    try {
      return await throughGate(options, arrival, handler, logger, shadow);
    } catch (error) {
      logger.error('A call could not be applied; it was rolled back.', {
        consumer,
        effectKey: arrival.effectKey,
        error,
      });
      const code = isTurnoutError(error) ? error.code : 'TURNOUT_HANDLER_FAILED';
      return refusal(503, code, 'The effect was rolled back.');
    }
  }

  return {
    consumer,
    maxAnswerBytes: options.maxAnswerBytes ?? 10_000_000,
    maxRequestBytes: options.maxRequestBytes ?? defaultMaxRequestBytes,
    handlerTimeoutMs: options.handlerTimeoutMs ?? defaultHandlerTimeoutMs,
    answer,
  };
}

const defaultHandlerTimeoutMs = 60_000;
export const defaultMaxRequestBytes = 50_000_000;
/** How much longer than its handler may take a transaction may stand idle, before the server ends it: its process was paused, or cut off. */
const idleLongerMs = 5_000;

/**
 * The gate whose transaction the current code runs in. A second one in it would give its outcome before the first commits, and
 * wait for its own row if it is the same: two on one route, or one mounted twice.
 */
const around = new AsyncLocalStorage<{ open: boolean }>();

/** Carries an answer without an outcome out of the transaction, which is rolled back by it. */
class WithoutOutcome extends Error {
  readonly answer: HandlerAnswer;
  constructor(answer: HandlerAnswer) {
    super(`The handler answered ${answer.status}.`);
    this.answer = answer;
  }
}

/** Rolls back what a refusing handler wrote, and nothing else. */
class Refused extends Error {}

async function throughGate<Tx, Request>(
  options: EndpointOptions<Tx, Request>,
  arrival: Arrival,
  handler: () => Promise<HandlerAnswer>,
  logger: Logger,
  shadow: ShadowedCall<Tx> | undefined,
): Promise<GateAnswer> {
  const { database, retentionMs = defaultRetentionMs, earlyWaitMs = 250, maxKeptBytes = 65_536 } = options;
  const idleMs = (options.handlerTimeoutMs ?? defaultHandlerTimeoutMs) + idleLongerMs;
  // What is older than the inbox gets no row there, unless it is the next one of its key.
  if (arrival.turn !== undefined || Date.now() - arrival.occurredAt.getTime() < retentionMs)
    await ensureInboxPartition(database, arrival.occurredAt);

  const here = { open: false };
  let given: HandlerAnswer | undefined;
  const effect = async (): Promise<Effect> => {
    let outcome: Effect | undefined;
    try {
      // A transaction in the transaction: a savepoint that also tells what was published inside how it ended.
      await database.transaction(async (tx) => {
        here.open = true;
        given = await around.run(here, () => (shadow === undefined ? handler() : shadow.run(tx, handler)));
        outcome = outcomeOf(given, options.isDefinitive, maxKeptBytes);
        if (outcome === undefined) throw new WithoutOutcome(given);
        if (outcome.outcome !== 'applied') throw new Refused();
      });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
    }
    return outcome!;
  };

  const deadline = performance.now() + earlyWaitMs;
  for (let look = 0; ; look++) {
    const isLast = performance.now() >= deadline;
    let verdict: Verdict;
    try {
      verdict = await database.transaction((tx) =>
        apply(database.within(tx), arrival, effect, { retentionMs, savepoint: false, idleMs }),
      );
    } catch (error) {
      shadow?.ended(error instanceof WithoutOutcome ? 'no outcome' : 'lost');
      if (error instanceof WithoutOutcome) return handlerAnswer(error.answer);
      throw error;
    } finally {
      here.open = false;
    }
    if (!isLast && (verdict.kind === 'early' || verdict.kind === 'running')) {
      await sleep(pauseBeforeNextLook(look, deadline - performance.now(), Math.random()));
      continue;
    }
    if (verdict.kind === 'done' && !verdict.repeated) {
      shadow?.ended(verdict.outcome === 'applied' ? 'applied' : 'rejected');
      drainLater(options, arrival, logger);
    }
    return answerTo(verdict, given);
  }
}

/** Whoever applies a number sees to the events that waited for it; the caller need not wait for that. */
function drainLater<Tx, Request>(
  { drain, consumer }: EndpointOptions<Tx, Request>,
  { source, topic, key, turn }: Arrival,
  logger: Logger,
): void {
  if (drain === undefined || turn === undefined) return;
  // Called in there, so that one that throws at once doesn't make a failure of what is committed.
  const drained = (async () => drain({ consumer, source, topic, key: key! }))();
  drained.catch((error: unknown) => {
    logger.warn('Held events of a key could not be applied; the consumer’s process will.', { consumer, key, error });
  });
}

function placeOf({ endpoint, address }: GateRequest<unknown>): Pick<NotedCall, 'endpoint' | 'address'> {
  return { endpoint, address };
}

/** Who calls, as far as anybody can tell; a function of the user's must not cost the call. */
function serviceOf<Request>(
  caller: EndpointOptions<unknown, Request>['caller'],
  { original, headers }: GateRequest<Request>,
): string | undefined {
  try {
    const told = caller?.(original);
    if (told !== undefined) return told;
  } catch {
    // As if it had not been given.
  }
  const agent = headers['user-agent'];
  return typeof agent === 'string' ? agent : agent?.[0];
}

async function isAuthentic<Request>(
  authenticate: EndpointOptions<unknown, Request>['authenticate'],
  request: Request,
): Promise<boolean> {
  try {
    // Compared, since JavaScript may give anything; a truthy mistake must not open the gate.
    const known: unknown = authenticate === undefined || (await authenticate(request));
    return known === true;
  } catch {
    return false;
  }
}

function readArrival<Request>({ headers }: GateRequest<Request>, consumer: string, order: Ordering): CalledEffect {
  const called = readCallHeaders(headers);
  if (called.consumer !== consumer) {
    throw new TurnoutError(
      'TURNOUT_CALL_HEADERS_MALFORMED',
      `The call is for ${called.consumer}; this is the endpoint of ${consumer}.`,
      {
        details: { header: 'turnout-consumer' },
      },
    );
  }
  if ((called.turn === undefined) !== (order === 'none')) {
    throw new TurnoutError(
      'TURNOUT_CALL_HEADERS_MALFORMED',
      `The endpoint of ${consumer} has order '${order}', and the call ${called.turn === undefined ? 'has no' : 'has a'} key number.`,
      {
        details: { header: 'turnout-key-number' },
      },
    );
  }
  return called;
}

/** The same for the same JSON, however it was parsed on its way here; the order of its members counts. */
function hashOf(body: unknown): string {
  const bytes = body instanceof Uint8Array || typeof body === 'string' ? body : (JSON.stringify(body) ?? '');
  return createHash('sha256').update(bytes).digest('hex');
}
