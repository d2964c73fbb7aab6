// Capture: an existing call of an existing endpoint becomes an event, in the transaction in which the endpoint does its work.
//
//   begin ─▶ the old handler (joined pools take part; its own BEGIN … COMMIT is a savepoint)
//         ├ 2xx ─────────────▶ publish, commit ─▶ the answer is sent; calls that the event owes begin
//         ├ 3xx, 4xx ────────▶ commit, no event: what it wrote on its way to a refusal stays, as it does today
//         ├ 5xx, no answer ──▶ roll back, no event
//         └ the event can't be published (schema, key) ─▶ roll back, 500: no effect without its event
//
// It has the shape of an endpoint's gate, so the wrapper of every adapter takes it, and it may sit on one route with a gate:
// behind it, it is a savepoint in the gate's transaction, and the event goes out if and when that commits. Its place is there; in front
// of a gate it sees the answers to repeats too, and publishes nothing for them.
// The handler runs once. A deadlock or a serialization failure, which `turnout.transaction` answers by running its work again,
// is answered with 503 here, and nothing was written: the handler has answered already, and what it did elsewhere would be done twice.
import { invalidDefinition, isTurnoutError } from '../../errors/index.ts';
import type { EventDefinition } from '../../event/index.ts';
import { silentLogger } from '../../lifecycle/index.ts';
import type { Logger } from '../../lifecycle/index.ts';
import { mayBeRepeated } from '../../outbox/index.ts';
import { defaultMaxRequestBytes } from './endpoint.ts';
import type { Endpoint, GateAnswer, GateRequest, HandlerAnswer } from './endpoint.ts';
import { refusal } from './gate-answer.ts';

/** What of `turnout` a capture uses: what `createTurnout` gives fits. */
export interface CapturingTurnout<Tx> {
  transaction<Result>(work: (tx: Tx) => Promise<Result>): Promise<Result>;
  publish<Name extends string, Input, Data>(
    tx: Tx,
    event: EventDefinition<Name, Input, Data>,
    data: NoInfer<Input>,
    options?: { readonly headers?: Readonly<Record<string, string>> },
  ): Promise<unknown>;
}

/** A request whose call is captured. */
export interface CapturedRequest<Request> {
  /** As the framework has it: parameters of the path, the user, … */
  readonly original: Request;
  /** Names in lower case. */
  readonly headers: GateRequest<Request>['headers'];
  /** As it was before the handler ran: parsed if it is JSON, else its bytes. */
  readonly body: unknown;
}

/** What the handler answered. */
export interface CapturedAnswer extends HandlerAnswer {
  /** The body, parsed; throws if it is no JSON. */
  json(): unknown;
}

export interface CaptureOptions<Name extends string, Input, Data, Request> {
  readonly event: EventDefinition<Name, Input, Data>;
  /** What the event says. Undefined: this call is none. If it throws, nothing is committed and the call fails with 500. */
  readonly data: (
    request: CapturedRequest<Request>,
    answer: CapturedAnswer,
  ) => NoInfer<Input> | undefined | Promise<NoInfer<Input> | undefined>;
  /** Headers of the event, such as `traceparent`. */
  readonly headers?: (request: CapturedRequest<Request>) => Readonly<Record<string, string>>;
  /** Which answers say that it has happened. Default: 2xx. For forms, perhaps `({ status }) => status < 400`. */
  readonly succeeded?: (answer: HandlerAnswer) => boolean;
  /** Which other answers take back what the handler wrote. Default: 5xx. For a handler that relies on writing before it fails: `() => false`. */
  readonly rollsBack?: (answer: HandlerAnswer) => boolean;
  /** How long the old handler may take, in milliseconds, before it is rolled back. Default 60,000. */
  readonly handlerTimeoutMs?: number;
  /** The largest answer that is held back until the commit, in bytes. Default 10 MB; a larger one is rolled back. */
  readonly maxAnswerBytes?: number;
  /** The largest request that is read before its handler reads it, in bytes. Default 50 MB; a larger one is refused (413). */
  readonly maxRequestBytes?: number;
  readonly logger?: Logger;
}

/**
 * Makes successful calls of an existing endpoint into events, in the same transaction as what the endpoint writes through
 * joined pools (`joinPool` of `turnout/pg`, `bindDataSource` of `turnout/typeorm`). Hand it to the `switchedOver` of the adapter. The
 * answer is sent after the commit; calls that the event owes begin then too. Throws TURNOUT_DEFINITION_INVALID.
 *
 * @example
 * const capture = createCapture(turnout, {
 *   event: OrderPlaced,
 *   data: ({ body }, answer) => ({ ...(body as NewOrder), orderId: (answer.json() as { id: string }).id }),
 * });
 * app.post('/orders', express.json(), switchedOver(capture), placeOrder);
 */
export function createCapture<Tx, Name extends string, Input, Data, Request = unknown>(
  turnout: CapturingTurnout<Tx>,
  options: CaptureOptions<Name, Input, Data, Request>,
): Endpoint<Request> {
  const { event, logger = silentLogger } = options;
  if (typeof turnout?.transaction !== 'function' || typeof turnout.publish !== 'function')
    throw invalidDefinition('turnout', 'A capture needs what createTurnout gives.');
  if (event?.name === undefined) throw invalidDefinition('event', 'A capture needs an event definition.');
  if (typeof options.data !== 'function')
    throw invalidDefinition('data', `The capture of ${event.name} has no function that gives its data.`);

  return {
    consumer: `the capture of ${event.name}`,
    maxAnswerBytes: options.maxAnswerBytes ?? 10_000_000,
    maxRequestBytes: options.maxRequestBytes ?? defaultMaxRequestBytes,
    handlerTimeoutMs: options.handlerTimeoutMs ?? 60_000,
    async answer(request, handler) {
      let body: unknown;
      try {
        body = await request.body();
      } catch (error) {
        if (isTurnoutError(error, 'TURNOUT_REQUEST_TOO_LARGE')) return refusal(413, error.code, error.message);
        return refusal(400, 'TURNOUT_EVENT_DATA_INVALID', `The body can't be read: ${String(error)}`);
      }
      try {
        return await captured(
          turnout,
          options,
          { original: request.original, headers: request.headers, body },
          handler,
        );
      } catch (error) {
        return failed(error, event.name, logger);
      }
    },
  };
}

/** Carries an answer out of the transaction, which is rolled back by it. */
class TakenBack extends Error {
  override readonly name = 'TakenBack';
  readonly answer: HandlerAnswer;
  constructor(answer: HandlerAnswer) {
    super(`The handler answered ${answer.status}.`);
    this.answer = answer;
  }
}

/** What went wrong inside, in a form that `turnout.transaction` doesn't take for a reason to run it all again. */
class NotAgain extends Error {
  override readonly name = 'NotAgain';
}

async function captured<Tx, Name extends string, Input, Data, Request>(
  turnout: CapturingTurnout<Tx>,
  options: CaptureOptions<Name, Input, Data, Request>,
  request: CapturedRequest<Request>,
  handler: () => Promise<HandlerAnswer>,
): Promise<GateAnswer> {
  const { succeeded = isSuccess, rollsBack = isServerError } = options;
  let ran = false;
  try {
    const given = await turnout.transaction(async (tx) => {
      // The commit failed, and would be tried with a second run.
      if (ran) throw new NotAgain('The transaction could not be committed.', { cause: conflict });
      ran = true;
      const answer = await handler();
      try {
        if (succeeded(answer)) await (isHadNow(answer) ? publishFor(tx, answer) : undefined);
        else if (rollsBack(answer)) throw new TakenBack(answer);
      } catch (error) {
        throw error instanceof TakenBack ? error : new NotAgain('It was rolled back.', { cause: error });
      }
      return answer;
    });
    return { kind: 'handler', answer: given, headers: {}, withheld: [] };
  } catch (error) {
    if (error instanceof TakenBack) return { kind: 'handler', answer: error.answer, headers: {}, withheld: [] };
    throw error instanceof NotAgain ? error.cause : error;
  }

  async function publishFor(tx: Tx, answer: HandlerAnswer): Promise<void> {
    const data = await options.data(request, { ...answer, json: () => JSON.parse(answer.body.toString()) as unknown });
    if (data === undefined) return;
    const headers = options.headers?.(request);
    await turnout.publish(tx, options.event, data, headers === undefined ? {} : { headers });
  }
}

const conflict = Object.assign(new Error('Two transactions were in each other’s way.'), { code: '40001' });

const isSuccess = ({ status }: HandlerAnswer): boolean => status >= 200 && status < 300;
/** Behind a gate's own answer: false for a repeat, which has had its event, and for what the gate left out. */
const isHadNow = ({ headers }: HandlerAnswer): boolean => (headers['turnout-outcome'] ?? 'applied') === 'applied';
const isServerError = ({ status }: HandlerAnswer): boolean => status >= 500;

function failed(error: unknown, event: string, logger: Logger): GateAnswer {
  const fields = { event, error };
  // Nothing is known to be wrong with the call: it may be made again, by whoever makes calls here.
  if (mayBeRepeated(error) || (isTurnoutError(error) && error.retryable)) {
    logger.warn('A call was rolled back; nothing was written, and there is no event.', fields);
    return refusal(503, codeOf(error), 'Nothing was written.', { 'retry-after': '1' });
  }
  if (isTurnoutError(error, 'TURNOUT_COMMIT_UNKNOWN')) {
    logger.error('It is not known whether a call was committed, and with it its event.', fields);
    return refusal(500, error.code, 'It is not known whether anything was written.');
  }
  logger.error('A call was rolled back; nothing was written, and there is no event.', fields);
  return refusal(500, codeOf(error), 'Nothing was written.');
}

function codeOf(error: unknown): string {
  return isTurnoutError(error) ? error.code : 'TURNOUT_HANDLER_FAILED';
}
