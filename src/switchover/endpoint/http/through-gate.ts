import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Endpoint, GateAnswer, HandlerAnswer } from '../endpoint.ts';
import { inTime } from '../../calls/given-up.ts';
import { holdResponse, mute } from './held-response.ts';
import type { HeldResponse } from './held-response.ts';

/** A request of a framework that stands on `node:http`. */
export interface HttpExchange<Request> {
  /** What `authenticate` is given. */
  readonly original: Request;
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** The route, see `GateRequest`. */
  readonly route?: string | undefined;
  /** What tells one body from another, see `GateRequest`. */
  body(): Promise<unknown>;
  /** Lets the request go on to the handler; called at most once. What it starts has to stay in its async context. */
  proceed(): void;
  /** Whether somebody handled the request; asked when there is an answer. */
  handled(answer: HandlerAnswer): boolean;
}

/**
 * Takes a request through a gate: the handler runs inside the transaction, its answer is held back until the commit and then
 * sent with the outcome. A request without Turnout's headers proceeds as if the gate were not there. Never rejects.
 */
export async function throughGate<Request>(
  endpoint: Endpoint<Request>,
  exchange: HttpExchange<Request>,
): Promise<void> {
  const { original, request, response } = exchange;
  const headersBefore = new Set(response.getHeaderNames());
  let held: HeldResponse | undefined;
  let givenUp = false;
  const answer = await endpoint.answer(
    {
      original,
      headers: request.headers,
      endpoint: exchange.route,
      address: request.socket.remoteAddress,
      body: () => exchange.body(),
    },
    async () => {
      const holding = (held = holdResponse(response, endpoint.maxAnswerBytes));
      try {
        const given = await inTime(endpoint, async () => {
          // Here: by now it is inside the transaction.
          exchange.proceed();
          return await holding.answer;
        });
        return { ...given, handled: exchange.handled(given) };
      } catch (error) {
        givenUp = true;
        throw error;
      }
    },
  );
  if (answer.kind === 'pass') return exchange.proceed();
  held?.release();
  if (response.destroyed || response.writableEnded) return givenUp ? mute(response) : undefined;
  try {
    send(response, answer, headersBefore);
  } catch (error) {
    // Middleware that overrides `end` may throw there; without an answer, the call is made again.
    response.destroy(error instanceof Error ? error : undefined);
  }
  if (givenUp) mute(response);
}

function send(
  response: ServerResponse,
  answer: Exclude<GateAnswer, { kind: 'pass' }>,
  headersBefore: ReadonlySet<string>,
): void {
  const { status, headers, body } =
    answer.kind === 'gate' ? answer : { ...answer.answer, headers: { ...answer.answer.headers, ...answer.headers } };
  if (answer.kind === 'gate') {
    // What a handler set whose answer is not sent.
    response.statusMessage = '';
    for (const name of response.getHeaderNames()) if (!headersBefore.has(name)) response.removeHeader(name);
  } else for (const name of answer.withheld) response.removeHeader(name);
  response.statusCode = status;
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
  response.end(body);
}
