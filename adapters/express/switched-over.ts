import type { Request, RequestHandler } from 'express';
import { abandoning } from '../../src/database/index.ts';
import { TurnoutError } from '../../src/errors/index.ts';
import type { Endpoint, GateAnswer, HandlerAnswer } from '../../src/switchover/index.ts';
import { captureAnswer, mute } from './capture-answer.ts';
import { bodyOf } from './request-body.ts';

/**
 * Middleware that puts a gate in front of an old handler, which stays as it is: its effect happens once, in order, and in
 * one transaction with what the gate writes. What the handler answers is held back until the commit, and sent with
 * `Turnout-Outcome`. Calls without Turnout's headers go through untouched.
 *
 * Its place is before the handler, after or before `express.json()`. The database that the handler uses has to be joined
 * (`joinPool` of `turnout/pg`, `bindDataSource` of `turnout/typeorm`), or its writes are not part of the transaction.
 *
 * @example
 * app.post('/confirmations', express.json(), switchedOver(endpoint), sendConfirmation);
 */
export function switchedOver(endpoint: Endpoint<Request>): RequestHandler {
  return async (request, response, next) => {
    const headersBefore = new Set(response.getHeaderNames());
    let givenUp = false;
    const answer: GateAnswer = await endpoint.answer(
      { original: request, headers: request.headers, body: () => bodyOf(request, endpoint.maxAnswerBytes) },
      async () => {
        // Read here: by now it is inside the transaction.
        const capture = captureAnswer(response, endpoint.maxAnswerBytes);
        const timer = setTimeout(() => capture.fail(tooSlow(endpoint)), endpoint.handlerTimeoutMs);
        try {
          next();
          const captured = await capture.answer.catch((error: unknown) => {
            givenUp = true;
            throw error;
          });
          // Nobody handled it: then the 404 refuses nothing.
          return { ...captured, handled: request.route !== undefined && !isExpressOwn404(request, captured) };
        } finally {
          clearTimeout(timer);
          capture.release();
        }
      },
    );
    if (answer.kind === 'pass') return next();
    if (response.destroyed || response.writableEnded) return givenUp ? mute(response) : undefined;
    if (answer.kind === 'gate') {
      // What a handler set whose answer is not sent.
      for (const name of response.getHeaderNames()) if (!headersBefore.has(name)) response.removeHeader(name);
    }
    const { status, headers, body } = answer.kind === 'gate' ? answer : { ...answer.answer, headers: answer.headers };
    response.status(status);
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
    response.end(body);
    if (givenUp) mute(response);
  };
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

/** The handler may go on; what it then writes through a joined pool is refused. */
function tooSlow({ consumer, handlerTimeoutMs }: Endpoint<Request>): TurnoutError {
  return abandoning(
    new TurnoutError(
      'TURNOUT_HANDLER_FAILED',
      `The handler of ${consumer} did not answer within ${handlerTimeoutMs} ms.`,
    ),
  );
}
