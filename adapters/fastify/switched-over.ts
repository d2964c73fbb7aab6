import { Stream } from 'node:stream';
import type { FastifyReply, FastifyRequest, HookHandlerDoneFunction } from 'fastify';
import { requestBody, throughGate } from '../../src/switchover/index.ts';
import type { Endpoint } from '../../src/switchover/index.ts';

/**
 * A hook that puts a gate in front of an old handler, which stays as it is: its effect happens once, in order, and in one
 * transaction with what the gate writes. All that Fastify does with an answer (serialisation by schema, `onSend` hooks, error
 * handlers, streams, `reply.hijack()`) it does as before; the answer is held back until the commit, and sent with
 * `Turnout-Outcome`. Calls without Turnout's headers go through untouched.
 *
 * As `preHandler`, of a route or of all: what the schema refuses is then refused before the gate, so its call stays owed. As `preValidation`
 * such a refusal (400) rejects the effect for good. The database that the handler uses has to be joined (`joinPool` of
 * `turnout/pg`, `bindDataSource` of `turnout/typeorm`), or its writes are not part of the transaction.
 *
 * @example
 * app.post('/confirmations', { preHandler: switchedOver(endpoint) }, sendConfirmation);
 */
export function switchedOver(
  endpoint: Endpoint<FastifyRequest>,
): (request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction) => void {
  // A hook of a whole app runs once more for a request that its handler leaves to `callNotFound()`.
  const inHand = new WeakSet<FastifyRequest>();
  return (request, reply, done) => {
    if (inHand.has(request)) return done();
    inHand.add(request);
    void throughGate(endpoint, {
      original: request,
      request: request.raw,
      response: reply.raw,
      route: `${request.method} ${request.routeOptions.url ?? ''}`,
      body: async () => {
        const { body } = request;
        // Nobody has parsed it, or the handler is to read it as a stream.
        if (body === undefined || body instanceof Stream) return requestBody(request.raw, endpoint.maxRequestBytes);
        return body;
      },
      proceed: () => done(),
      // Nobody handled it: then the 404 refuses nothing.
      handled: () => !request.is404,
    });
  };
}
