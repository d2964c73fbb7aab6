import { Metadata, status } from '@grpc/grpc-js';
import type { handleUnaryCall, MethodDefinition, sendUnaryData, ServerUnaryCall } from '@grpc/grpc-js';
import { TurnoutError } from '../../src/errors/index.ts';
import {
  bounded,
  grpcCodeOfStatus,
  inTime,
  isDefinitiveCode,
  refusalText,
  statusOfGrpcCode,
} from '../../src/switchover/index.ts';
import type { Endpoint, GateAnswer, HandlerAnswer } from '../../src/switchover/index.ts';
import { metadataOf, valuesOf } from './metadata.ts';

/** What `authenticate` gets. */
type AnyCall = ServerUnaryCall<unknown, unknown>;

/**
 * Puts a gate in front of the old handler of a unary method, which stays as it is: its effect happens once, in order, and in
 * one transaction with what the gate writes. What the handler answers is held back until the commit, and sent with
 * `turnout-outcome` in its trailers. Calls without Turnout's metadata go through untouched.
 *
 * `method` is the method's definition (of `proto.mail.Mailer.service`, or of generated code): it tells one message from
 * another, and gives a kept answer again. The codes that refuse for good are in docs/endpoints.md, {@link definitiveCodes}
 * names others. Throws TURNOUT_DEFINITION_INVALID for a method that streams.
 *
 * @example
 * server.addService(Mailer.service, {
 *   SendConfirmation: switchedOver(endpoint, Mailer.service.SendConfirmation, sendConfirmation),
 * });
 */
export function switchedOver<Request, Response>(
  endpoint: Endpoint<AnyCall>,
  method: MethodDefinition<Request, Response>,
  handler: handleUnaryCall<Request, Response>,
): handleUnaryCall<Request, Response> {
  if (method.requestStream || method.responseStream)
    throw new TurnoutError(
      'TURNOUT_DEFINITION_INVALID',
      `${method.path} is a streaming method; only unary ones can be held back until the commit.`,
      { details: { path: 'method' } },
    );
  return (call, callback) => {
    let given: Given<Response> | undefined;
    const answered = endpoint.answer(
      {
        original: call,
        headers: valuesOf(call.metadata),
        endpoint: method.path,
        address: call.getPeer(),
        body: () => Promise.resolve(method.requestSerialize(call.request)),
      },
      async () => {
        const heldBack = holdMetadata(call);
        try {
          given = { ...(await inTime(endpoint, () => answerOf(handler, call))), initial: heldBack.sent() };
          return bounded(describe(given, method), endpoint);
        } finally {
          heldBack.release();
        }
      },
    );
    void answered.then((answer) => send(answer, given, { call, callback, handler, method }));
  };
}

/** What the handler gave to its callback, and to `sendMetadata` before. */
interface Given<Response> {
  readonly error: Parameters<sendUnaryData<Response>>[0];
  readonly response: Response | null | undefined;
  readonly trailers: Metadata;
  readonly flags: number | undefined;
  readonly initial: Metadata | undefined;
}

/** Keeps what the handler sends ahead of its answer: a caller must not see any of it before the commit. */
function holdMetadata(call: AnyCall): { sent(): Metadata | undefined; release(): void } {
  let sent: Metadata | undefined;
  Object.defineProperty(call, 'sendMetadata', {
    configurable: true,
    value: (metadata: Metadata) => void (sent ??= metadata),
  });
  return { sent: () => sent, release: () => void delete (call as { sendMetadata?: unknown }).sendMetadata };
}

/** Runs the handler until it has answered, in whichever way. What it throws is a failure. */
function answerOf<Request, Response>(
  handler: handleUnaryCall<Request, Response>,
  call: ServerUnaryCall<Request, Response>,
): Promise<Omit<Given<Response>, 'initial'>> {
  return new Promise((resolve, reject) => {
    const callback: sendUnaryData<Response> = (error, response, trailers, flags) => {
      resolve({
        error,
        response,
        trailers: (trailers ?? error?.metadata ?? new Metadata()).clone(),
        flags,
      });
    };
    const failed = (error: unknown): void => {
      reject(error instanceof Error ? error : new Error(String(error)));
    };
    try {
      // Typed as if it gave nothing; an async function gives a promise.
      const running: unknown = handler(call, callback);
      if (running instanceof Promise) running.catch(failed);
    } catch (error) {
      failed(error);
    }
  });
}

/** How it is kept: a message as its bytes, a refusal as its code and text, and the trailers of both. */
function describe<Response>(
  { error, response, trailers, initial }: Given<Response>,
  method: Pick<MethodDefinition<unknown, Response>, 'responseSerialize'>,
): HandlerAnswer {
  // What was sent ahead is not kept; but if it speaks as a gate does, the gate has to see it.
  const ahead = Object.entries(valuesOf(initial ?? new Metadata())).filter(([name]) => name.startsWith('turnout-'));
  const headers = { ...Object.fromEntries(ahead), ...valuesOf(trailers) };
  if (error === null || error === undefined) {
    const body = method.responseSerialize(response as Response);
    return { status: 200, headers: { ...headers, 'content-type': message }, body };
  }
  const { code, details } = codeOf(error);
  return {
    status: statusOfGrpcCode(code),
    headers: { ...headers, 'content-type': refusal, 'grpc-status': String(code) },
    body: Buffer.from(details),
    definitive: isDefinitiveCode(code),
  };
}

const message = 'application/grpc';
const refusal = 'application/grpc-status';

/** As grpc-js reads it. */
function codeOf(error: NonNullable<Parameters<sendUnaryData<unknown>>[0]>): { code: number; details: string } {
  const text = 'message' in error ? error.message : 'Unknown Error';
  return Number.isInteger(error.code)
    ? { code: error.code!, details: error.details ?? text }
    : { code: status.UNKNOWN, details: text };
}

interface Underway<Request, Response> {
  readonly call: ServerUnaryCall<Request, Response>;
  readonly callback: sendUnaryData<Response>;
  readonly handler: handleUnaryCall<Request, Response>;
  readonly method: MethodDefinition<Request, Response>;
}

function send<Request, Response>(
  answer: GateAnswer,
  given: Given<Response> | undefined,
  { call, callback, handler, method }: Underway<Request, Response>,
): void {
  if (answer.kind === 'pass') return runAsBefore(handler, call, callback);
  if (answer.kind === 'handler') {
    const { error, response, trailers, flags, initial } = given!;
    for (const name of answer.withheld) for (const metadata of [trailers, initial]) metadata?.remove(name);
    for (const [name, value] of Object.entries(answer.headers)) trailers.set(name, value);
    if (initial !== undefined) call.sendMetadata(initial);
    return callback(error, response, trailers, flags);
  }
  const { 'content-type': kind, 'grpc-status': code, ...rest } = answer.headers;
  const trailers = metadataOf(rest);
  if (kind === refusal) return callback({ code: Number(code), details: answer.body.toString() }, null, trailers);
  if (answer.status >= 200 && answer.status < 300) {
    // It came as an event, or was too large to keep: there is no message but the empty one.
    const bytes = kind === message ? answer.body : Buffer.alloc(0);
    return callback(null, method.responseDeserialize(bytes), trailers);
  }
  callback({ code: grpcCodeOfStatus(answer.status), details: refusalText(answer.body) }, null, trailers);
}

/** As grpc-js itself does, which is no longer there to catch what the handler throws. */
function runAsBefore<Request, Response>(
  handler: handleUnaryCall<Request, Response>,
  call: ServerUnaryCall<Request, Response>,
  callback: sendUnaryData<Response>,
): void {
  try {
    handler(call, callback);
  } catch {
    callback({ code: status.UNKNOWN, details: 'Unknown error' }, null);
  }
}
