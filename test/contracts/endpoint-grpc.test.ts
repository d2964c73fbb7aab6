import { credentials, Metadata, Server, ServerCredentials, status } from '@grpc/grpc-js';
import type { ClientUnaryCall, handleUnaryCall, sendUnaryData, ServerUnaryCall, ServiceError } from '@grpc/grpc-js';
import { switchedOver } from 'turnout/grpc';
import { GrpcEffects as Effects, GrpcNowhere as Nowhere } from './protobuf.ts';
import { endpointContract, statusOfError } from './endpoint.ts';
import type { EndpointDriver, OldHandler, Reply, RunningService, ServiceCall } from './endpoint.ts';

type Call = ServerUnaryCall<unknown, unknown>;

const trailersOf = (headers: Readonly<Record<string, string>> = {}): Metadata => {
  const trailers = new Metadata();
  for (const [name, value] of Object.entries(headers)) trailers.set(name, value);
  return trailers;
};

/** As handlers of grpc-js are: what fails is handed on. */
function oldHandler(does: OldHandler): handleUnaryCall<unknown, unknown> {
  const answer = async (call: Call, callback: sendUnaryData<unknown>): Promise<void> => {
    const deed = await does(call.request);
    switch (deed.do) {
      case 'answer':
        return callback(null, deed.body, trailersOf(deed.headers));
      case 'refuse':
        return callback({ code: status.INVALID_ARGUMENT, details: deed.message }, null, trailersOf(deed.headers));
      case 'fail':
        return callback({ code: status.INTERNAL, details: deed.message, metadata: trailersOf(deed.headers) });
      case 'twice':
        callback(null, deed.body);
        return callback({ code: status.INTERNAL, details: 'second' });
      case 'status':
      case 'stream':
      case 'break':
      case 'pass':
        throw new Error(`${deed.do} is not for unary calls.`);
    }
  };
  const caught = async (call: Call, callback: sendUnaryData<unknown>): Promise<void> => {
    try {
      await answer(call, callback);
    } catch (error) {
      callback(error as Error);
    }
  };
  return (call, callback) => void caught(call, callback);
}

const likeInHttp: Readonly<Record<number, number>> = {
  [status.OK]: 200,
  [status.INVALID_ARGUMENT]: 422,
  [status.INTERNAL]: 500,
  [status.UNKNOWN]: 500,
  [status.UNIMPLEMENTED]: 404,
};

const driver: EndpointDriver<Call> = {
  name: 'gRPC',
  features: {
    statuses: false,
    streaming: false,
    answersTwice: true,
    breaks: false,
    passesOn: false,
    answerHeaders: true,
    nests: true,
  },
  authorization: (call) => call.metadata.get('authorization')[0]?.toString(),
  async start({ endpoint, gates = 1, handler }) {
    const server = new Server();
    const method = Effects.service['Have']!;
    let have = oldHandler(handler);
    if (endpoint !== undefined) for (let gate = 0; gate < gates; gate++) have = switchedOver(endpoint, method, have);
    server.addService(Effects.service, { Have: have });
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      ),
    );
    return caller(server, port);
  },
};

function caller(server: Server, port: number): RunningService {
  const client = new Effects(`127.0.0.1:${port}`, credentials.createInsecure());
  const nobody = new Nowhere(`127.0.0.1:${port}`, credentials.createInsecure());
  return {
    call: ({ headers, body, signal, nowhere = false }: ServiceCall) =>
      new Promise<Reply>((resolve, reject) => {
        let message: unknown;
        const invoke = (nowhere ? nobody : client)['Have'] as Client;
        const call = invoke.call(nowhere ? nobody : client, body, trailersOf(headers), (_error, answer) => {
          message = answer;
        });
        signal?.addEventListener('abort', () => call.cancel());
        call.on('status', ({ code, details, metadata }: ServiceError) => {
          if (code === status.CANCELLED) return reject(new Error('The call was cancelled.'));
          const { date: _, ...received } = Object.fromEntries(
            Object.entries(metadata.getMap()).map(([name, value]) => [name, value.toString()]),
          );
          const error = received['turnout-error'];
          resolve({
            status: error === undefined ? (likeInHttp[code] ?? 503) : statusOfError(error),
            outcome: received['turnout-outcome'],
            error,
            headers: received,
            body: code === status.OK ? message : details,
            raw: { code, details, message, received },
          });
        });
      }),
    async stop() {
      client.close();
      nobody.close();
      server.forceShutdown();
      await Promise.resolve();
    },
  };
}

type Client = (
  request: unknown,
  metadata: Metadata,
  callback: (error: ServiceError | null, answer?: unknown) => void,
) => ClientUnaryCall;

endpointContract(driver);
