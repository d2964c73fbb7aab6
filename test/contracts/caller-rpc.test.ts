import { createServer } from 'node:http';
import type { RequestListener, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import type { CallOptions as ConnectOptions } from '@connectrpc/connect';
import { connectNodeAdapter, createConnectTransport, createGrpcWebTransport } from '@connectrpc/connect-node';
import { credentials, Metadata, Server, ServerCredentials, status } from '@grpc/grpc-js';
import type { CallOptions, ClientUnaryCall, handleUnaryCall, ServiceError } from '@grpc/grpc-js';
import { createTRPCClient, httpLink } from '@trpc/client';
import { initTRPC, TRPCError } from '@trpc/server';
import { createHTTPHandler } from '@trpc/server/adapters/standalone';
import { rpcConnect } from 'turnout/connect';
import { rpcGrpc } from 'turnout/grpc';
import { callContext, rpcHeaders, rpcLink, rpcTrpc } from 'turnout/trpc';
import type { CallContext } from 'turnout/trpc';
import { grpcCodeOfStatus } from '../../src/switchover/index.ts';
import { callerContract } from './caller.ts';
import type { Callee, CallerDriver, RunningCallee } from './caller.ts';
import { statusOfError } from './endpoint.ts';
import { ConnectEffects, GrpcEffects, have } from './protobuf.ts';

const features = { redirects: false, stalls: false };
const nothing = new Promise<never>(() => undefined);

/** The data of the suite in the message that the protocols here have. */
const messageOf = (data: unknown): { name: string; step: number } => ({ name: JSON.stringify(data), step: 1 });

const grpc: CallerDriver = {
  name: 'gRPC',
  features,
  async start(callee) {
    const server = new Server();
    server.addService(GrpcEffects.service, { Have: grpcHandler(server, callee) });
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      ),
    );
    const client = new GrpcEffects(`127.0.0.1:${port}`, credentials.createInsecure());
    const invoke = client['Have'] as GrpcHave;
    const own = new Metadata();
    own.set('turnout-consumer', 'somebody');
    return {
      call: (rpc, data) =>
        rpcGrpc(
          rpc,
          (metadata, options, callback) => invoke.call(client, messageOf(data), metadata, options, callback),
          { metadata: own },
        ),
      async stop() {
        client.close();
        server.forceShutdown();
        await Promise.resolve();
      },
    };
  },
};

type GrpcHave = (
  request: unknown,
  metadata: Metadata,
  options: CallOptions,
  callback: (error: ServiceError | null, answer?: unknown) => void,
) => ClientUnaryCall;

function grpcHandler(server: Server, callee: Callee): handleUnaryCall<unknown, unknown> {
  return ({ metadata, request }, callback) => {
    const deed = callee({ headers: metadata.getMap() as Record<string, string>, body: JSON.stringify(request) });
    const trailers = new Metadata();
    if ('headers' in deed) for (const [name, value] of Object.entries(deed.headers)) trailers.set(name, value);
    switch (deed.do) {
      case 'answer':
        return callback(null, deed.body, trailers);
      case 'refuse':
        return callback({ code: status.INVALID_ARGUMENT, details: deed.message }, null, trailers);
      case 'gate':
        trailers.set('turnout-error', deed.error);
        return callback({ code: grpcCodeOfStatus(statusOfError(deed.error)) }, null, trailers);
      case 'fail':
        return callback({ code: status.UNAVAILABLE, details: deed.message, metadata: marked() });
      case 'hang up':
        return server.forceShutdown();
      case 'redirect':
      case 'never':
      case 'stall':
        return undefined;
    }
  };
}

/** A service that fails says something; of one that says nothing a client can't tell whether it is there. */
function marked(): Metadata {
  const metadata = new Metadata();
  metadata.set('x-mail', 'out of order');
  return metadata;
}

/** An HTTP server, and what it answers now: requests come one after the other here. */
async function listen(
  listener: (current: () => ServerResponse) => RequestListener,
): Promise<{ url: string; stop: RunningCallee['stop'] }> {
  let current: ServerResponse;
  const handle = listener(() => current);
  const server = createServer((request, response) => {
    current = response;
    handle(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

const connect = (protocol: 'Connect' | 'gRPC-Web'): CallerDriver => ({
  name: `Connect, over ${protocol}`,
  features,
  async start(callee) {
    const { url: baseUrl, stop } = await listen((current) =>
      connectNodeAdapter({
        routes: (router) =>
          void router.rpc(have, async (request, context) => {
            const { name, step } = request as unknown as { name: string; step: number };
            const received = {
              headers: Object.fromEntries(context.requestHeader),
              body: JSON.stringify({ name, step }),
            };
            const deed = callee(received);
            switch (deed.do) {
              case 'answer':
                for (const [key, value] of Object.entries(deed.headers)) context.responseHeader.set(key, value);
                return deed.body as Record<string, unknown>;
              case 'refuse':
                throw new ConnectError(deed.message, Code.InvalidArgument, deed.headers);
              case 'gate':
                throw new ConnectError('the gate', grpcCodeOfStatus(statusOfError(deed.error)), {
                  ...deed.headers,
                  'turnout-error': deed.error,
                });
              case 'fail':
                throw new ConnectError(deed.message, Code.Unavailable);
              case 'hang up':
                current().destroy();
                return await nothing;
              case 'redirect':
              case 'never':
              case 'stall':
                return await nothing;
            }
          }),
      }),
    );
    const options = { baseUrl, httpVersion: '1.1' as const };
    const client = createClient(
      ConnectEffects,
      protocol === 'Connect' ? createConnectTransport(options) : createGrpcWebTransport(options),
    );
    const invoke = client['have'] as unknown as (request: object, own: ConnectOptions) => Promise<{ sent: string }>;
    return {
      async call(rpc, data) {
        const headers = { 'turnout-consumer': 'somebody' };
        const answer = await rpcConnect(rpc, (own) => invoke(messageOf(data), own), { headers });
        const { sent } = answer.body as { sent?: string };
        return sent === undefined ? answer : { ...answer, body: { sent } };
      },
      stop,
    };
  },
});

const t = initTRPC.context<{ turnout: CallContext; response: ServerResponse }>().create({ isDev: false });

function routerOf(callee: Callee) {
  return t.router({
    effects: t.procedure
      .input((input) => input)
      .mutation(async ({ ctx, input }): Promise<unknown> => {
        const headers = ctx.turnout.headers as Record<string, string>;
        const deed = callee({ headers, body: JSON.stringify(input) });
        if ('headers' in deed)
          for (const [key, value] of Object.entries(deed.headers)) ctx.turnout.setHeader?.(key, value);
        switch (deed.do) {
          case 'answer':
            return deed.body;
          case 'refuse':
            throw new TRPCError({ code: 'UNPROCESSABLE_CONTENT', message: deed.message });
          case 'gate':
            ctx.turnout.setHeader?.('turnout-error', deed.error);
            throw new TRPCError({ code: trpcCodes[statusOfError(deed.error)] ?? 'SERVICE_UNAVAILABLE' });
          case 'fail':
            throw new TRPCError({ code: 'SERVICE_UNAVAILABLE', message: deed.message });
          case 'hang up':
            ctx.response.destroy();
            return await nothing;
          case 'redirect':
          case 'never':
          case 'stall':
            return await nothing;
        }
      }),
  });
}

const trpcCodes: Readonly<Record<number, TRPCError['code']>> = {
  401: 'UNAUTHORIZED',
  409: 'CONFLICT',
  422: 'UNPROCESSABLE_CONTENT',
  425: 'PRECONDITION_FAILED',
};

const trpc: CallerDriver = {
  name: 'tRPC',
  features,
  async start(callee) {
    const router = routerOf(callee);
    const { url, stop } = await listen(() =>
      createHTTPHandler({
        router,
        createContext: (options) => ({ ...callContext(options), response: options.res }),
      }),
    );
    const client = createTRPCClient<typeof router>({ links: [rpcLink(), httpLink({ url, headers: rpcHeaders })] });
    return { call: (rpc, data) => rpcTrpc(rpc, (options) => client.effects.mutate(data, options)), stop };
  },
};

callerContract(grpc);
callerContract(connect('Connect'));
callerContract(connect('gRPC-Web'));
callerContract(trpc);
