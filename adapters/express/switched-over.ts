import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Request } from 'express';
import type { Endpoint, HandlerAnswer } from '../../src/switchover/index.ts';
import { requestBody, throughGate } from '../../src/switchover/index.ts';

/** Typed by Node's own types, as `express.json()` is: it fits Express 5 and 4, and leaves the types of a route's parameters alone. */
export type ExpressMiddleware = (
  request: IncomingMessage,
  response: ServerResponse,
  next: (error?: unknown) => void,
) => void;

/**
 * Middleware that puts a gate in front of an old handler, which stays as it is: its effect happens once, in order, and in
 * one transaction with what the gate writes. What the handler answers is held back until the commit, and sent with
 * `Turnout-Outcome`. Calls without Turnout's headers go through untouched. For Express 5 and 4.
 *
 * Its place is before the handler, after or before `express.json()`. The database that the handler uses has to be joined
 * (`joinPool` of `turnout/pg`, `bindDataSource` of `turnout/typeorm`), or its writes are not part of the transaction.
 *
 * @example
 * app.post('/confirmations', express.json(), switchedOver(endpoint), sendConfirmation);
 */
export function switchedOver(endpoint: Endpoint<Request>): ExpressMiddleware {
  return (incoming, response, next) => {
    const request = incoming as Request;
    void throughGate(endpoint, {
      original: request,
      request,
      response,
      route: routeOf(request),
      body: () => requestBody(request, endpoint.maxRequestBytes),
      proceed: () => next(),
      // Nobody handled it: then the 404 refuses nothing.
      handled: (answer) => request.route !== undefined && !isExpressOwn404(request, answer),
    });
  };
}

/** `POST /confirmations/:id`; of middleware of many routes, where it is mounted. */
function routeOf({ method, baseUrl, route }: Request): string {
  const { path = '' } = (route ?? {}) as { path?: unknown };
  return `${method} ${baseUrl}${String(path)}`;
}

/**
 * Whether this is what Express answers when every handler has passed the request on. `request.route` doesn't tell: it stays
 * when a route that matched calls `next()`.
 */
function isExpressOwn404({ method }: Request, { status, headers, body }: HandlerAnswer): boolean {
  return (
    status === 404 &&
    headers['content-security-policy'] === "default-src 'none'" &&
    body.includes(`<pre>Cannot ${method} `)
  );
}
