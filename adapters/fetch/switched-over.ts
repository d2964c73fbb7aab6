import type { Endpoint, GateAnswer, HandlerAnswer } from '../../src/switchover/index.ts';
import { comparable, requestTooLarge } from '../../src/switchover/index.ts';
import { answerOf, bytesOf, responseOf } from './answers.ts';

/** What middleware of Hono is given, as far as it is used here. */
export interface HonoContextLike {
  readonly req: {
    readonly raw: Request;
    readonly method: string;
    readonly routePath: string;
    arrayBuffer(): Promise<ArrayBuffer>;
  };
  get res(): Response;
  set res(response: Response | undefined);
}

/** Middleware as Hono has it. */
export type HonoMiddlewareLike = (context: HonoContextLike, next: () => Promise<void>) => Promise<void>;

/**
 * Puts a gate in front of an old handler of the Fetch style, which stays as it is: its effect happens once, in order, and in
 * one transaction with what the gate writes. What the handler answers is held back until the commit, streamed bodies too, and
 * sent with `Turnout-Outcome`. Calls without Turnout's headers go through untouched.
 *
 * Without a handler it gives middleware for Hono, whose place is before the handler, of one route or of all.
 *
 * The database that the handler uses has to be joined (`joinPool` of `turnout/pg`, `bindDataSource` of `turnout/typeorm`), or
 * its writes are not part of the transaction.
 *
 * @example
 * export const POST = switchedOver(endpoint, sendConfirmation);          // (request: Request) => Response | Promise<Response>
 * app.post('/confirmations', switchedOver(endpoint), sendConfirmation);  // Hono
 */
export function switchedOver<Rest extends readonly unknown[] = []>(
  endpoint: Endpoint<Request>,
  handler: (request: Request, ...rest: Rest) => Response | Promise<Response>,
): (request: Request, ...rest: Rest) => Promise<Response>;
export function switchedOver(endpoint: Endpoint<Request>): HonoMiddlewareLike;
export function switchedOver(
  endpoint: Endpoint<Request>,
  handler?: (request: Request, ...rest: readonly unknown[]) => Response | Promise<Response>,
): HonoMiddlewareLike | ((request: Request, ...rest: readonly unknown[]) => Promise<Response>) {
  if (handler === undefined) return honoMiddleware(endpoint);
  return async (request: Request, ...rest: readonly unknown[]) => {
    const answer = await answered(endpoint, request, {
      // Of a clone: the handler is to find its request unread.
      body: () => readOf(request, endpoint),
      run: () => answerOf(endpoint, () => handler(request, ...rest)),
    });
    return answer.kind === 'pass' ? handler(request, ...rest) : responseOf(answer);
  };
}

function honoMiddleware(endpoint: Endpoint<Request>): HonoMiddlewareLike {
  return async (context, next) => {
    const { req } = context;
    const answer = await answered(endpoint, req.raw, {
      route: `${req.method} ${req.routePath}`,
      // Middleware before this one may have read it: then Hono has it.
      body: async () => (req.raw.bodyUsed ? Buffer.from(await req.arrayBuffer()) : await readOf(req.raw, endpoint)),
      async run() {
        const given = await answerOf(endpoint, async () => {
          await next();
          return context.res;
        });
        return { ...given, handled: !isHonosOwn404(given) };
      },
    });
    if (answer.kind === 'pass') return next();
    // Set to nothing first: otherwise Hono mixes the headers of both.
    context.res = undefined;
    context.res = responseOf(answer);
  };
}

/** What a request holds, which is left unread. */
function readOf(request: Request, { maxRequestBytes }: Endpoint<Request>): Promise<Buffer> {
  return bytesOf(request.clone().body, maxRequestBytes, () => requestTooLarge(maxRequestBytes));
}

interface Call {
  readonly route?: string;
  body(): Promise<Buffer>;
  run(): Promise<HandlerAnswer>;
}

function answered(endpoint: Endpoint<Request>, request: Request, call: Call): Promise<GateAnswer> {
  const headers = Object.fromEntries(request.headers);
  return endpoint.answer(
    { original: request, headers, endpoint: call.route, body: async () => comparable(await call.body(), headers) },
    () => call.run(),
  );
}

/** What Hono answers when nobody has handled a request; an app that says it otherwise can't be told from its handlers. */
function isHonosOwn404({ status, body }: HandlerAnswer): boolean {
  return status === 404 && body.toString() === '404 Not Found';
}
