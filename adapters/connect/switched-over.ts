import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import { Code, ConnectError } from '@connectrpc/connect';
import type { Interceptor, UnaryRequest, UnaryResponse } from '@connectrpc/connect';
import {
  bounded,
  grpcCodeOfStatus,
  hasCallHeaders,
  inTime,
  isDefinitiveCode,
  refusalText,
  statusOfGrpcCode,
} from '../../src/switchover/index.ts';
import type { Endpoint, GateAnswer, HandlerAnswer } from '../../src/switchover/index.ts';
import { describeError, kindOfError, rebuildError } from './kept-error.ts';

/**
 * An interceptor that puts a gate in front of the unary methods it is given to, whose implementations stay as they are: their
 * effects happen once, in order, and in one transaction with what the gate writes. What they answer is held back until the
 * commit, and sent with `turnout-outcome`. Calls without Turnout's headers go through untouched; streaming calls with them
 * are refused (UNIMPLEMENTED).
 *
 * Its place is the innermost: interceptors that it surrounds are part of the effect. The codes that refuse for good are in
 * docs/endpoints.md, {@link definitiveCodes} names others.
 *
 * @example
 * router.service(Mailer, { sendConfirmation }, { interceptors: [switchedOver(endpoint)] });
 */
export function switchedOver(endpoint: Endpoint<UnaryRequest>): Interceptor {
  return (next) => async (request) => {
    const headers = Object.fromEntries(request.header);
    if (request.stream) {
      if (hasCallHeaders(headers))
        throw new ConnectError(
          `${request.method.name} streams: only unary methods stand behind a gate.`,
          Code.Unimplemented,
        );
      return next(request);
    }
    let given: Given | undefined;
    const answer = await endpoint.answer(
      {
        original: request,
        headers,
        endpoint: `${request.service.typeName}/${request.method.name}`,
        body: () => Promise.resolve(toBinary(request.method.input, request.message)),
      },
      async () => {
        // A unary request has a unary response.
        given = await inTime(endpoint, () => answerOf(next(request) as Promise<UnaryResponse>));
        return bounded(describe(given), endpoint);
      },
    );
    return answer.kind === 'pass' ? next(request) : responseTo(answer, request, given);
  };
}

type Given =
  | { readonly response: UnaryResponse }
  /** `thrown` is what Connect gets again: of what is no ConnectError it tells callers nothing. */
  | { readonly error: ConnectError; readonly thrown: unknown };

/** Waits for the implementation; what it throws is an answer, with code UNKNOWN unless it is a ConnectError. */
function answerOf(running: Promise<UnaryResponse>): Promise<Given> {
  return running.then(
    (response): Given => ({ response }),
    (thrown: unknown): Given => ({ error: ConnectError.from(thrown), thrown }),
  );
}

/** How it is kept: a message as its bytes, an error as JSON, and what the implementation sent with either. */
function describe(given: Given): HandlerAnswer {
  if ('error' in given)
    return {
      status: statusOfGrpcCode(given.error.code),
      headers: {
        ...Object.fromEntries(given.error.metadata),
        'content-type': kindOfError,
        'grpc-status': String(given.error.code),
      },
      body: describeError(given.error),
      definitive: isDefinitiveCode(given.error.code),
    };
  const { method, message, header, trailer } = given.response;
  // The gate's own words are looked for by their names, wherever they stand.
  const trailers = [...trailer].map(([name, value]) => [
    name.startsWith('turnout-') ? name : `${trailerPrefix}${name}`,
    value,
  ]);
  return {
    status: 200,
    // Its content type is that of the protocol in which the first call came; the next may come in another.
    headers: { ...Object.fromEntries(header), ...Object.fromEntries(trailers), 'content-type': kindOfMessage },
    body: Buffer.from(toBinary(method.output, message)),
  };
}

const kindOfMessage = 'application/protobuf';
/** As Connect's own protocol has it. */
const trailerPrefix = 'trailer-';

function responseTo(
  answer: Exclude<GateAnswer, { kind: 'pass' }>,
  request: UnaryRequest,
  given: Given | undefined,
): UnaryResponse {
  if (answer.kind === 'handler') {
    if (given !== undefined && 'response' in given) {
      const { header, trailer } = given.response;
      for (const name of answer.withheld) for (const some of [header, trailer]) some.delete(name);
      for (const [name, value] of Object.entries(answer.headers)) header.set(name, value);
      return given.response;
    }
    const { error, thrown } = given!;
    for (const name of answer.withheld) error.metadata.delete(name);
    for (const [name, value] of Object.entries(answer.headers)) error.metadata.set(name, value);
    throw thrown;
  }
  const { 'content-type': kind, 'grpc-status': code, ...rest } = answer.headers;
  const [header, trailer] = headersOf(rest);
  if (kind === kindOfError) throw rebuildError(Number(code), answer.body, header);
  const { method, service } = request;
  if (answer.status >= 200 && answer.status < 300) {
    // It came as an event, or was too large to keep: there is no message but the empty one.
    const message = kind === kindOfMessage ? fromBinary(method.output, answer.body) : create(method.output);
    // Connect answers as it was asked in each of its protocols; what is returned here replaces what it has set already.
    const asked = request.header.get('content-type') ?? 'application/proto';
    header.set('content-type', asked);
    if (asked.startsWith('application/grpc')) trailer.set('grpc-status', '0');
    return { stream: false, service, method, message, header, trailer };
  }
  throw new ConnectError(refusalText(answer.body), grpcCodeOfStatus(answer.status), header);
}

function headersOf(all: Readonly<Record<string, string | readonly string[]>>): [header: Headers, trailer: Headers] {
  const [header, trailer] = [new Headers(), new Headers()];
  for (const [name, value] of Object.entries(all)) {
    const isTrailer = name.startsWith(trailerPrefix);
    for (const each of typeof value === 'string' ? [value] : value)
      (isTrailer ? trailer : header).append(isTrailer ? name.slice(trailerPrefix.length) : name, each);
  }
  return [header, trailer];
}
