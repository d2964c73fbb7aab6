import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import type { CallOptions, UnaryRequest } from '@connectrpc/connect';
import { connectNodeAdapter, createConnectTransport, createGrpcWebTransport } from '@connectrpc/connect-node';
import { switchedOver } from 'turnout/connect';
import { ConnectEffects as Effects, ConnectNowhere as Nowhere, have } from './protobuf.ts';
import { endpointContract, statusOfError } from './endpoint.ts';
import type { EndpointDriver, OldHandler, Reply } from './endpoint.ts';

type Have = (request: object, options: CallOptions) => Promise<{ sent: string }>;

async function old(does: OldHandler, request: object, header: Headers): Promise<Record<string, unknown>> {
  const { name, step } = request as { name: string; step: number };
  const deed = await does({ name, step });
  switch (deed.do) {
    case 'answer':
      for (const [key, value] of Object.entries(deed.headers ?? {})) header.set(key, value);
      return deed.body as Record<string, unknown>;
    case 'refuse':
      throw new ConnectError(deed.message, Code.InvalidArgument, deed.headers);
    case 'fail':
      throw new ConnectError(deed.message, Code.Internal, deed.headers);
    case 'twice':
    case 'status':
    case 'stream':
    case 'break':
    case 'pass':
      throw new Error(`${deed.do} is not for unary methods.`);
  }
}

const likeInHttp: Partial<Record<Code, number>> = {
  [Code.InvalidArgument]: 422,
  [Code.Internal]: 500,
  [Code.Unknown]: 500,
  [Code.Unimplemented]: 404,
};

const driver = (protocol: 'Connect' | 'gRPC-Web', useBinaryFormat: boolean): EndpointDriver<UnaryRequest> => ({
  name: `Connect, called over ${protocol}, ${useBinaryFormat ? 'binary' : 'JSON'}`,
  features: {
    statuses: false,
    streaming: false,
    answersTwice: false,
    breaks: false,
    passesOn: false,
    answerHeaders: true,
    nests: true,
  },
  authorization: (request) => request.header.get('authorization') ?? undefined,
  async start({ endpoint, gates = 1, handler }) {
    const interceptors = endpoint === undefined ? [] : Array.from({ length: gates }, () => switchedOver(endpoint));
    const server = createServer(
      connectNodeAdapter({
        routes: (router) =>
          void router.rpc(have, (request, context) => old(handler, request, context.responseHeader), {
            interceptors,
          }),
      }),
    );
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const options = { baseUrl, httpVersion: '1.1' as const, useBinaryFormat };
    const transport = protocol === 'Connect' ? createConnectTransport(options) : createGrpcWebTransport(options);
    const call = createClient(Effects, transport)['have'] as unknown as Have;
    const nobody = createClient(Nowhere, transport)['have'] as unknown as Have;
    return {
      async call({ headers, body, signal, nowhere = false }) {
        const received: Record<string, string> = {};
        const keep = (some: Headers) => some.forEach((value, name) => void (received[name] = value));
        const made = await (nowhere ? nobody : call)(body as object, {
          headers,
          ...(signal === undefined ? {} : { signal }),
          onHeader: keep,
          onTrailer: keep,
        }).then(
          ({ sent }) => ({ status: 200, body: { sent } as unknown }),
          (error: unknown) => {
            if (!(error instanceof ConnectError) || error.code === Code.Canceled) throw error;
            keep(error.metadata);
            return { status: likeInHttp[error.code] ?? 503, body: error.rawMessage };
          },
        );
        const { date: _, ...lasting } = received;
        const error = received['turnout-error'];
        return {
          ...made,
          status: error === undefined ? made.status : statusOfError(error),
          outcome: received['turnout-outcome'],
          error,
          headers: received,
          raw: { made, lasting },
        } satisfies Reply;
      },
      stop: () =>
        new Promise((resolve) => {
          server.close(() => resolve());
          server.closeAllConnections();
        }),
    };
  },
});

endpointContract(driver('Connect', true));
endpointContract(driver('gRPC-Web', false));
