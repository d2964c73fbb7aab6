import type { Operation, TRPCLink } from '@trpc/client';
import type { AnyRouter } from '@trpc/server';
import { observable } from '@trpc/server/observable';
import { TurnoutError } from '../../src/errors/index.ts';
import type { RpcAnswer, RpcCall } from '../../src/switchover/index.ts';

/** What a client's procedure is called with, beside its input. */
export interface RpcOptions {
  readonly context: Record<string, unknown>;
  readonly signal: AbortSignal;
}

/** What a link tells `headers` of. */
export interface RpcOperation {
  readonly op: Pick<Operation, 'context'>;
}

/** Under this name a call travels with the operation it becomes. */
const name = 'turnout';

interface Travelling {
  readonly headers: Readonly<Record<string, string>>;
  response?: Response;
}

/**
 * Makes a switchover's call with a tRPC client whose links are `rpcLink()` and `httpLink({ url, headers: rpcHeaders })`: with the
 * headers by which the endpoint knows the effect, and bounded by the call's time-out. Resolves with any answer, whatever
 * its status (`body` is the data, or `{ code, message }`); rejects when there is none.
 *
 * The input has to be the same for the same event, or a repeat is refused (422): nothing of the moment in it. A link that batches
 * would send several calls with the headers of one; the endpoint refuses them.
 *
 * @example
 * const client = createTRPCClient<MailRouter>({ links: [rpcLink(), httpLink({ url, headers: rpcHeaders })] });
 * on(OrderPlaced, (event, call) => rpcTrpc(call, (options) => client.confirmations.send.mutate(event.data, options)));
 */
export async function rpcTrpc<Output>(
  call: RpcCall,
  invoke: (options: RpcOptions) => Promise<Output>,
): Promise<RpcAnswer> {
  const travelling: Travelling = { headers: call.headers };
  try {
    const body = await invoke({ context: { [name]: travelling }, signal: call.signal });
    if (travelling.response === undefined)
      throw new TurnoutError(
        'TURNOUT_DEFINITION_INVALID',
        'The tRPC client has no rpcLink() before the link that sends, so nobody sees the headers of the answer.',
        { details: { path: 'links' } },
      );
    return answerOf(travelling.response, body);
  } catch (error) {
    const response = responseOf(error);
    if (response === undefined) throw error;
    const { message, data } = error as { message: string; data?: { code?: unknown } | null };
    return answerOf(response, { code: data?.code, message });
  }
}

/** For `headers` of `httpLink`: the headers of the call that an operation is; none for others. Spread them beside your own. */
export function rpcHeaders({ op }: RpcOperation): Record<string, string> {
  return { ...(op.context[name] as Travelling | undefined)?.headers };
}

/** The link by which {@link rpcTrpc} sees the headers of an answer; its place is before the link that sends. */
export function rpcLink<Router extends AnyRouter>(): TRPCLink<Router> {
  return () =>
    ({ op, next }) =>
      observable((observer) =>
        next(op).subscribe({
          next(envelope) {
            const travelling = op.context[name] as Travelling | undefined;
            const response = envelope.context?.['response'];
            if (travelling !== undefined && response instanceof Response) travelling.response = response;
            observer.next(envelope);
          },
          error: (error) => observer.error(error),
          complete: () => observer.complete(),
        }),
      );
}

/** What came with an error, unless nothing came. */
function responseOf(error: unknown): Response | undefined {
  const response = (error as { meta?: { response?: unknown } } | undefined)?.meta?.response;
  return response instanceof Response ? response : undefined;
}

function answerOf(response: Response, body: unknown): RpcAnswer {
  const headers = Object.fromEntries(response.headers);
  // tRPC has no code for 425; the gate says 412 and what it means.
  const status = headers['turnout-error'] === 'TURNOUT_EFFECT_EARLY' ? 425 : response.status;
  return { status, headers, body };
}
