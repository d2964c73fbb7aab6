import { createServer } from 'node:http';
import { TRPCError, initTRPC } from '@trpc/server';
import { fastifyTRPCPlugin } from '@trpc/server/adapters/fastify';
import { fetchRequestHandler } from '@trpc/server/adapters/fetch';
import { createHTTPHandler } from '@trpc/server/adapters/standalone';
import { serve } from '@hono/node-server';
import fastify from 'fastify';
import type { AddressInfo } from 'node:net';
import { callContext, switchedOver } from 'turnout/trpc';
import type { CallContext, TrpcCall } from 'turnout/trpc';
import { callOverHttp, serveListener } from './endpoint-http.ts';
import { endpointContract, statusOfError } from './endpoint.ts';
import type { EndpointDriver, OldHandler, OldService, Reply, RunningService } from './endpoint.ts';

const t = initTRPC.context<{ turnout: CallContext }>().create({ isDev: false });

async function resolve(does: OldHandler, input: unknown): Promise<unknown> {
  const deed = await does(input);
  switch (deed.do) {
    case 'answer':
      return deed.body;
    case 'refuse':
      throw new TRPCError({ code: 'UNPROCESSABLE_CONTENT', message: deed.message });
    case 'fail':
      throw new TRPCError({ code: 'INTERNAL_SERVER_ERROR', message: deed.message });
    case 'twice':
    case 'status':
    case 'stream':
    case 'break':
    case 'pass':
      throw new Error(`${deed.do} is not for procedures.`);
  }
}

function routerOf({ endpoint, gates, handler }: OldService<TrpcCall>) {
  const order = t.procedure.input((input) => input);
  const gated = endpoint === undefined ? t.procedure : t.procedure.use(switchedOver(endpoint));
  const twice = endpoint === undefined || gates === undefined ? gated : gated.use(switchedOver(endpoint));
  const have = endpoint === undefined ? order : twice.input((input) => input);
  return t.router({ effects: have.mutation(({ input }) => resolve(handler, input)) });
}

type Router = ReturnType<typeof routerOf>;

/** Each of these has another way to the headers of the response; Express has that of the standalone one. */
const servers: Record<string, (router: Router) => Promise<RunningService>> = {
  standalone: (router) => serveListener(createHTTPHandler({ router, createContext: callContext })),
  async Fastify(router) {
    const app = fastify({ forceCloseConnections: true });
    await app.register(fastifyTRPCPlugin, { prefix: '/', trpcOptions: { router, createContext: callContext } });
    await app.listen({ port: 0, host: '127.0.0.1' });
    const { port } = app.server.address() as AddressInfo;
    return { call: callOverHttp(`http://127.0.0.1:${port}`), stop: () => app.close() };
  },
  async Fetch(router) {
    const server = serve({
      fetch: (req) => fetchRequestHandler({ endpoint: '', req, router, createContext: callContext }),
      port: 0,
      hostname: '127.0.0.1',
      createServer,
    });
    await new Promise((listening) => server.once('listening', listening));
    const { port } = server.address() as AddressInfo;
    return {
      call: callOverHttp(`http://127.0.0.1:${port}`),
      stop: () =>
        new Promise((closed) => {
          server.close(() => closed());
          (server as ReturnType<typeof createServer>).closeAllConnections();
        }),
    };
  },
};

const driver = (name: string): EndpointDriver<TrpcCall> => ({
  name: `tRPC, ${name}`,
  features: {
    statuses: false,
    streaming: false,
    answersTwice: false,
    breaks: false,
    passesOn: false,
    answerHeaders: false,
    nests: true,
  },
  authorization: ({ headers }) => headers['authorization'] as string | undefined,
  async start(service) {
    const running = await servers[name]!(routerOf(service));
    return { ...running, call: async (request) => replyOf(await running.call(request)) };
  },
});

/** What tRPC wraps the data and the errors in. */
function replyOf(reply: Reply): Reply {
  const { result, error } = reply.body as { result?: { data: unknown }; error?: { message: string } };
  const status = reply.error === undefined ? reply.status : statusOfError(reply.error);
  return { ...reply, status, body: error === undefined ? result?.data : error.message };
}

for (const name of Object.keys(servers)) endpointContract(driver(name));
