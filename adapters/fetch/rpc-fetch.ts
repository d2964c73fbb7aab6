import type { RpcAnswer, RpcCall } from '../../src/switchover/index.ts';

/** What `fetch` takes, and `json` for a body of JSON. */
export interface RpcFetchInit extends Omit<RequestInit, 'signal' | 'redirect'> {
  /** The body; sent with `content-type: application/json`. */
  readonly json?: unknown;
}

/**
 * Makes a switchover's call with `fetch`: with the headers by which the endpoint knows the effect, and bounded by the
 * call's time-out. Uses POST unless told otherwise. Resolves with any answer, whatever its status; rejects when there is none.
 *
 * The body has to be the same for the same event, or a repeat is refused (422): nothing of the moment in it, and no user's token.
 *
 * @example
 * on(OrderPlaced, (event, call) =>
 *   rpcFetch(call, 'http://email/confirmations', { json: event.data, headers: { authorization: `Bearer ${serviceToken}` } }),
 * );
 */
export async function rpcFetch(call: RpcCall, url: string | URL, init: RpcFetchInit = {}): Promise<RpcAnswer> {
  const { json, headers: own, ...rest } = init;
  const headers = new Headers(own);
  if (json !== undefined && !headers.has('content-type')) headers.set('content-type', 'application/json');
  for (const [name, value] of Object.entries(call.headers)) headers.set(name, value);
  const response = await fetch(url, {
    method: 'POST',
    ...rest,
    ...(json === undefined ? {} : { body: JSON.stringify(json) }),
    headers,
    signal: call.signal,
    // Where it leads, the headers of the call might not be followed.
    redirect: 'manual',
  });
  const text = await response.text();
  return {
    status: response.status,
    headers: Object.fromEntries(response.headers),
    body: parsed(text, response.headers),
  };
}

/** JSON if it says so and is; else the text. */
function parsed(text: string, headers: Headers): unknown {
  if (!/\bjson\b/i.test(headers.get('content-type') ?? '')) return text;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}
