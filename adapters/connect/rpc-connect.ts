import { ConnectError } from '@connectrpc/connect';
import type { CallOptions } from '@connectrpc/connect';
import type { RpcAnswer, RpcCall } from '../../src/switchover/index.ts';
import { statusOfGrpcCode } from '../../src/switchover/index.ts';

/**
 * Makes a switchover's call with a Connect client, over whichever of its protocols: with the headers by which the endpoint
 * knows the effect, and bounded by the call's time-out. `headers` are sent with it, such as service credentials. Resolves with any
 * answer of the service, whose code is given as its like in HTTP (`body` is the message, or `{ code, message }`); rejects
 * when there is none.
 *
 * The message has to be the same for the same event, or a repeat is refused: nothing of the moment in it, and no user's token.
 *
 * @example
 * on(OrderPlaced, (event, call) => rpcConnect(call, (options) => mailer.sendConfirmation(event.data, options)));
 */
export async function rpcConnect<Response>(
  call: RpcCall,
  invoke: (options: CallOptions) => Promise<Response>,
  { headers: own }: { readonly headers?: Readonly<Record<string, string>> } = {},
): Promise<RpcAnswer> {
  const headers = new Headers(own);
  for (const [name, value] of Object.entries(call.headers)) headers.set(name, value);
  const received: Record<string, string> = {};
  const keep = (some: Headers): void => some.forEach((value, name) => void (received[name] = value));
  try {
    const body = await invoke({
      headers,
      signal: call.signal,
      timeoutMs: call.timeoutMs,
      onHeader: keep,
      onTrailer: keep,
    });
    return { status: 200, headers: received, body };
  } catch (error) {
    if (!(error instanceof ConnectError)) throw error;
    keep(error.metadata);
    // The client's own: nobody answered.
    if (Object.keys(received).length === 0) throw error;
    return {
      status: statusOfGrpcCode(error.code, received['turnout-error'] !== undefined),
      headers: received,
      body: { code: error.code, message: error.rawMessage },
    };
  }
}
