import type { JSONRPCRequest, JSONRPCResponse, JSONRPCServer } from 'json-rpc-2.0';
import { bounded, inTime } from '../../src/switchover/index.ts';
import type { Endpoint, GateAnswer, HandlerAnswer } from '../../src/switchover/index.ts';

/** The HTTP request and response that carry a JSON-RPC request, as those of `node:http`, Express and `reply.raw` are. */
export interface JsonRpcExchange<Incoming> {
  readonly request: Incoming;
  readonly response: { statusCode: number; setHeader(name: string, value: string): unknown };
}

export interface JsonRpcOptions {
  /**
   * Whether an error of this code, an integer, refuses the effect for good (`rejected`); otherwise the call is made again. Default:
   * -32600 and -32602. Not -32601 (the method may come with the next version); nor the application's own codes, of which nobody but
   * the application knows which are refusals, and which "busy" or "try again".
   */
  readonly isDefinitive?: (code: number) => boolean;
}

/** A `JSONRPCServer` behind a gate: the same two methods, which need to know what came and goes in HTTP. */
export interface GatedServer<Incoming, Params> {
  readonly receive: (
    request: JSONRPCRequest | JSONRPCRequest[],
    exchange: JsonRpcExchange<Incoming>,
    serverParams?: Params,
  ) => Promise<JSONRPCResponse | JSONRPCResponse[] | null>;
  readonly receiveJSON: (
    json: string,
    exchange: JsonRpcExchange<Incoming>,
    serverParams?: Params,
  ) => Promise<JSONRPCResponse | JSONRPCResponse[] | null>;
}

interface WithHeaders {
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly socket?: { readonly remoteAddress?: string | undefined };
}

/**
 * Puts a gate in front of a JSON-RPC server, whose methods stay as they are: an effect happens once, in order, and in one
 * transaction with what the gate writes. The answer is given after the commit; its outcome goes in the HTTP header
 * `Turnout-Outcome`. What the gate refuses has an HTTP status of its own and a JSON-RPC error with code -32000.
 * Requests without Turnout's headers go through untouched.
 *
 * A batch with Turnout's headers is refused (400), since they tell of one effect. A notification with them is one effect as any, and has no
 * answer but the headers. The id is no part of what tells one request from another.
 *
 * @example
 * const gated = switchedOver(endpoint, server);
 * app.post('/rpc', express.json(), async (request, response) => {
 *   const answer = await gated.receive(request.body, { request, response });
 *   if (answer === null) response.status(204).end();
 *   else response.json(answer);
 * });
 */
export function switchedOver<Incoming extends WithHeaders, Params = void>(
  endpoint: Endpoint<Incoming>,
  server: JSONRPCServer<Params>,
  { isDefinitive = isDefinitiveByDefault }: JsonRpcOptions = {},
): GatedServer<Incoming, Params> {
  const receive: GatedServer<Incoming, Params>['receive'] = async (request, { request: http, response }, params) => {
    let given: JSONRPCResponse | null = null;
    const answer = await endpoint.answer(
      {
        original: http,
        headers: http.headers,
        endpoint: Array.isArray(request) ? undefined : request?.method,
        address: http.socket?.remoteAddress,
        async body() {
          if (Array.isArray(request)) throw new Error('A batch has several effects, and the headers tell of one.');
          return { method: request?.method, params: request?.params };
        },
      },
      async () => {
        // Also a notification is asked for its answer: a refused one must not count as applied.
        const asked = { ...(request as JSONRPCRequest), id: idOf(request) ?? null };
        given = await inTime(endpoint, async () => server.receive(asked, params));
        return bounded(answerOf(given, isDefinitive), endpoint);
      },
    );
    if (answer.kind === 'pass') return server.receive(request, params);
    for (const [name, value] of Object.entries(answer.headers))
      if (name.startsWith('turnout-') || name === 'retry-after') response.setHeader(name, String(value));
    if (answer.kind === 'gate' && 'turnout-error' in answer.headers) response.statusCode = answer.status;
    const id = idOf(request);
    if (id === undefined) return null;
    return answer.kind === 'handler' ? given : kept(answer, id);
  };
  return {
    receive,
    async receiveJSON(json, exchange, params) {
      let request: JSONRPCRequest | JSONRPCRequest[];
      try {
        request = JSON.parse(json) as JSONRPCRequest | JSONRPCRequest[];
      } catch {
        return server.receiveJSON(json, params);
      }
      return receive(request, exchange, params);
    },
  };
}

/** Undefined of a notification; null of what has no id, but an answer. */
function idOf(request: JSONRPCRequest | JSONRPCRequest[]): JSONRPCResponse['id'] | undefined {
  return Array.isArray(request) || typeof request !== 'object' || request === null ? null : request.id;
}

/** Codes of the specification that say "this request will never be right". What others mean, the endpoint has to say. */
const definitive = new Set([-32600, -32602]);
const isDefinitiveByDefault = (code: number): boolean => definitive.has(code);

/** As the gate keeps it: the result or the error, without the id, which is of one request. */
function answerOf(response: JSONRPCResponse | null, isDefinitive: (code: number) => boolean): HandlerAnswer {
  const { result, error } = response ?? {};
  const body = Buffer.from(JSON.stringify(error === undefined ? { result } : { error }));
  if (error === undefined) return { status: 200, headers: {}, body };
  // An error mapper may hand on whatever it finds as the code, such as the "40001" of a database.
  const definitive = Number.isInteger(error.code) && isDefinitive(error.code);
  return { status: definitive ? 422 : 500, headers: {}, body, definitive };
}

/** An answer of before, or the gate's own refusal. */
function kept(
  { status, headers, body }: Extract<GateAnswer, { kind: 'gate' }>,
  id: JSONRPCResponse['id'],
): JSONRPCResponse {
  const { result, error } = (body.length === 0 ? {} : JSON.parse(body.toString())) as {
    result?: unknown;
    error?: { code: number | string; message: string };
  };
  const code = headers['turnout-error'];
  if (code !== undefined)
    return { jsonrpc: '2.0', id, error: { code: -32000, message: error?.message ?? String(code), data: { code } } };
  if (status < 400) return { jsonrpc: '2.0', id, result: result ?? null };
  return {
    jsonrpc: '2.0',
    id,
    error: { code: -32000, message: 'The effect was rejected.', ...error } as { code: number; message: string },
  };
}
