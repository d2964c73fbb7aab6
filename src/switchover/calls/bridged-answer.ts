// What the answer of an endpoint means that nobody can change: it says nothing of outcomes, so its status has to do.
import { isDefinitiveByDefault } from './definitive-status.ts';

/** `'wrapped'`: behind the gate, answers carry the outcome. `'bridged'`: nobody can change it; its status counts. */
export type EndpointKind = 'wrapped' | 'bridged';

/**
 * `done`: it has had its effect. `rejected`: refused for good. `unavailable`: it isn't up to answering now, which says
 * nothing of this call. `failed`: this call failed, and may succeed another time.
 */
export type Meaning = 'done' | 'rejected' | 'unavailable' | 'failed';

/**
 * Whether a 4xx of a bridged endpoint refuses the effect for good, unless its definition says otherwise: as of a wrapped one, but for
 * 404, which is also what a proxy says while nobody is behind it. Taken for the endpoint's word, it would lose the effect.
 */
export const isDefinitiveOfBridged = (status: number): boolean => status !== 404 && isDefinitiveByDefault(status);

/** What balancers and rate limits say in place of an endpoint. */
const notUp = new Set([408, 425, 429, 502, 503, 504]);

/** What the status of a bridged endpoint means. */
export function meaningOf(status: number, isDefinitive: (status: number) => boolean): Meaning {
  if (status >= 200 && status < 300) return 'done';
  if (status >= 400 && status < 500 && isDefinitive(status)) return 'rejected';
  return notUp.has(status) ? 'unavailable' : 'failed';
}

/** What Node, `fetch` and axios call a connection that was not there, or broke, or an answer that did not come in time. */
const connectionCodes =
  /^(ECONN(REFUSED|RESET|ABORTED)|E(PIPE|TIMEDOUT|HOSTUNREACH|NETUNREACH|HOSTDOWN|NETDOWN|AI_AGAIN)|ENOTFOUND|ERR_NETWORK|UND_ERR_(CONNECT_TIMEOUT|HEADERS_TIMEOUT|BODY_TIMEOUT|SOCKET|CLOSED|DESTROYED))$/;

/** Whether a call rejected since nobody answered; anything else is taken for a fault of the call itself. */
export function isUnanswered(error: unknown, depth = 0): boolean {
  if (typeof error !== 'object' || error === null || depth > 5) return false;
  const { name, code, cause } = error as { name?: unknown; code?: unknown; cause?: unknown };
  if (name === 'TimeoutError' || name === 'AbortError') return true;
  if (typeof code === 'string' && connectionCodes.test(code)) return true;
  // `fetch failed` has the reason as its cause; tried addresses are an AggregateError with the code on it.
  return isUnanswered(cause, depth + 1);
}
