import { TRPCError } from '@trpc/server';
import { getHTTPStatusCodeFromError } from '@trpc/server/http';
import { TurnoutError } from '../../src/errors/index.ts';
import { bounded, hasCallHeaders, inTime } from '../../src/switchover/index.ts';
import type { Endpoint, GateAnswer, HandlerAnswer } from '../../src/switchover/index.ts';
import type { CallContext } from './call-context.ts';

/** What `authenticate` gets. */
export interface TrpcCall {
  readonly path: string;
  readonly headers: CallContext['headers'];
  readonly ctx: object;
}

export interface SwitchedOverOptions {
  /** That of `initTRPC…create({ transformer })`, its output's half if it has two: kept answers go through it. */
  readonly transformer?: { serialize(data: never): unknown; deserialize(data: never): unknown };
}

/** A middleware as `procedure.use` takes it. */
type Middleware = <Result>(options: {
  readonly ctx: { readonly turnout: CallContext };
  readonly path: string;
  readonly type: string;
  readonly getRawInput: () => Promise<unknown>;
  readonly next: () => Promise<Result>;
}) => Promise<Result>;

/**
 * Middleware that puts a gate in front of a mutation, whose resolver stays as it is: its effect happens once, in order, and in
 * one transaction with what the gate writes. What it answers is held back until the commit, and sent with `Turnout-Outcome`. Calls
 * without Turnout's headers go through untouched. The context has to have what {@link callContext} makes.
 *
 * Its place is first, before `input`: what comes after it is part of the effect, and what it refuses (BAD_REQUEST) is refused for
 * good. A request that calls several procedures (a batch) is refused if it carries Turnout's headers, for they are those of one.
 *
 * @example
 * send: t.procedure.use(switchedOver(endpoint)).input(order).mutation(({ input }) => emails.send(input)),
 */
export function switchedOver(endpoint: Endpoint<TrpcCall>, { transformer }: SwitchedOverOptions = {}): Middleware {
  const codec = codecOf(transformer);
  return async <Result>({ ctx, path, type, getRawInput, next }: Parameters<Middleware>[0]) => {
    const { turnout } = ctx;
    if (hasCallHeaders(turnout.headers)) refuseWhatNobodyCanAnswer(turnout, path, type);
    let given: Given | undefined;
    const answer = await endpoint.answer(
      {
        original: { path, headers: turnout.headers, ctx },
        headers: turnout.headers,
        endpoint: path,
        address: turnout.address,
        body: getRawInput,
      },
      async () => {
        given = await inTime(endpoint, () => next() as Promise<Given>);
        return bounded(describe(given, codec), endpoint);
      },
    );
    if (answer.kind === 'pass') return (await next()) as Result;
    for (const [name, value] of Object.entries(answer.headers))
      if (name.startsWith('turnout-') || name === 'retry-after') turnout.setHeader?.(name, String(value));
    // As `next()` gave it, or made like it.
    return (
      answer.kind === 'handler' ? given : { ...resultOf(answer, codec), ctx, marker: 'middlewareMarker' }
    ) as Result;
  };
}

/** What `next()` gives. */
type Given = { readonly ok: true; readonly data: unknown } | { readonly ok: false; readonly error: TRPCError };

interface Codec {
  encode(data: unknown): Buffer;
  decode(bytes: Buffer): unknown;
}

function codecOf(transformer: SwitchedOverOptions['transformer']): Codec {
  return {
    encode: (data) =>
      Buffer.from(JSON.stringify(transformer === undefined ? data : transformer.serialize(data as never)) ?? ''),
    decode(bytes) {
      if (bytes.length === 0) return undefined;
      const data = JSON.parse(bytes.toString()) as never;
      return transformer === undefined ? data : transformer.deserialize(data);
    },
  };
}

function refuseWhatNobodyCanAnswer({ calls, setHeader }: CallContext, path: string, type: string): void {
  const refuse = (why: string): never => {
    setHeader?.('turnout-error', 'TURNOUT_CALL_HEADERS_MALFORMED');
    throw new TRPCError({ code: 'BAD_REQUEST', message: why });
  };
  if (type !== 'mutation') refuse(`${path} is a ${type}: only mutations have effects that a gate can keep.`);
  if (calls > 1)
    refuse(`The request calls ${calls} procedures with the headers of one call: send it without batching.`);
  if (setHeader === undefined) refuse(`The transport of ${path} can’t carry Turnout-Outcome back: call it over HTTP.`);
}

const kindOfError = 'application/trpc-error+json';
/** The status of Nginx for a caller that has hung up: of the moment, though it is a 4xx. */
const clientClosed = 499;

/** How it is kept: the data as JSON, an error as its code and text. */
function describe(given: Given, codec: Codec): HandlerAnswer {
  if (given.ok) {
    if (isStream(given.data))
      throw new TurnoutError(
        'TURNOUT_ANSWER_TOO_LARGE',
        'The procedure answers with a stream, which can’t be held back until the commit.',
      );
    return { status: 200, headers: { 'content-type': 'application/json' }, body: codec.encode(given.data) };
  }
  const { error } = given;
  const status = getHTTPStatusCodeFromError(error);
  return {
    status: status === clientClosed ? 503 : status,
    headers: { 'content-type': kindOfError, 'trpc-code': error.code },
    body: Buffer.from(error.message),
  };
}

function isStream(data: unknown): boolean {
  return typeof data === 'object' && data !== null && (Symbol.asyncIterator in data || data instanceof ReadableStream);
}

/** A kept answer, or the gate's own. */
function resultOf({ status, headers, body }: Extract<GateAnswer, { kind: 'gate' }>, codec: Codec): Given {
  if (headers['content-type'] === kindOfError)
    return {
      ok: false,
      error: new TRPCError({ code: headers['trpc-code'] as TRPCError['code'], message: body.toString() }),
    };
  // An answer of nobody (it came as an event) is an object without members; it has not been through the transformer.
  if (status >= 200 && status < 300) return { ok: true, data: body.toString() === '{}' ? {} : codec.decode(body) };
  const { error } = JSON.parse(body.toString()) as { error?: { message: string } };
  return {
    ok: false,
    error: new TRPCError({
      code: codesOfGate[status] ?? (status < 500 ? 'PRECONDITION_FAILED' : 'SERVICE_UNAVAILABLE'),
      ...(error === undefined ? {} : { message: error.message }),
    }),
  };
}

/** tRPC has none for 425: rpcTrpc knows it by `turnout-error`. */
const codesOfGate: Readonly<Record<number, TRPCError['code']>> = {
  400: 'BAD_REQUEST',
  401: 'UNAUTHORIZED',
  409: 'CONFLICT',
  422: 'UNPROCESSABLE_CONTENT',
  425: 'PRECONDITION_FAILED',
  428: 'PRECONDITION_REQUIRED',
  503: 'SERVICE_UNAVAILABLE',
};
