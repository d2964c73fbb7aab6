import { Metadata, status } from '@grpc/grpc-js';
import type { CallOptions, ClientUnaryCall, ServiceError } from '@grpc/grpc-js';
import type { RpcAnswer, RpcCall } from '../../src/switchover/index.ts';
import { statusOfGrpcCode } from '../../src/switchover/index.ts';
import { headersOf, metadataOf } from './metadata.ts';

/** Makes one unary call of a client's with what it is given: `client.send(request, metadata, options, callback)`. */
export type UnaryCall<Response> = (
  metadata: Metadata,
  options: CallOptions,
  callback: (error: ServiceError | null, response?: Response) => void,
) => ClientUnaryCall;

export interface RpcGrpcOptions {
  /** Sent with the call, such as service credentials; never a user's. */
  readonly metadata?: Metadata;
}

/**
 * Makes a switchover's call with gRPC: with the metadata by which the endpoint knows the effect, and bounded by the call's
 * time-out. Resolves with any answer of the service, whose code is given as its like in HTTP (`body` is the message, or
 * `{ code, details }`); rejects when there is none.
 *
 * The message has to be the same for the same event, or a repeat is refused: nothing of the moment in it.
 *
 * @example
 * on(OrderPlaced, (event, call) =>
 *   rpcGrpc(call, (metadata, options, callback) => mailer.sendConfirmation(event.data, metadata, options, callback)),
 * );
 */
export function rpcGrpc<Response>(
  call: RpcCall,
  invoke: UnaryCall<Response>,
  { metadata: own }: RpcGrpcOptions = {},
): Promise<RpcAnswer> {
  if (call.signal.aborted) return Promise.reject(call.signal.reason as Error);
  const metadata = own?.clone() ?? new Metadata();
  for (const [name, values] of Object.entries(metadataOf(call.headers).toJSON())) metadata.set(name, values[0]!);
  return new Promise((resolve, reject) => {
    let answer: { error: ServiceError | null; response?: Response | undefined } | undefined;
    let initial: Metadata | undefined;
    const deadline = new Date(Date.now() + call.timeoutMs);
    const started = invoke(metadata, { deadline }, (error, response) => {
      answer = { error, response };
    });
    const cancel = (): void => started.cancel();
    call.signal.addEventListener('abort', cancel, { once: true });
    started
      .on('metadata', (received: Metadata) => (initial = received))
      // Told after the callback, and with the trailers of a success too.
      .on('status', ({ code, details, metadata: trailers }: { code: status; details: string; metadata: Metadata }) => {
        call.signal.removeEventListener('abort', cancel);
        const headers = { ...(initial === undefined ? {} : headersOf(initial)), ...headersOf(trailers) };
        if (code !== status.OK && isOwn(code, headers)) return reject(answer?.error ?? new Error(`${code} ${details}`));
        resolve({
          status: statusOfGrpcCode(code, headers['turnout-error'] !== undefined),
          headers,
          body: code === status.OK ? answer?.response : { code, details },
        });
      });
  });
}

/** Codes that the client gives itself when nobody answered, unless something came with them. */
function isOwn(code: status, headers: Readonly<Record<string, string>>): boolean {
  return (
    (code === status.UNAVAILABLE || code === status.DEADLINE_EXCEEDED || code === status.CANCELLED) &&
    Object.keys(headers).length === 0
  );
}
