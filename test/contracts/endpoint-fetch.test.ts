import { getRequestListener } from '@hono/node-server';
import { Hono } from 'hono';
import { switchedOver } from 'turnout/fetch';
import { path, serveListener } from './endpoint-http.ts';
import { endpointContract } from './endpoint.ts';
import type { Deed, EndpointDriver, OldHandler, RunningService } from './endpoint.ts';

function responseTo(deed: Deed): Response {
  switch (deed.do) {
    case 'answer':
      return Response.json(deed.body, { headers: deed.headers ?? {} });
    case 'refuse':
      return Response.json({ error: deed.message }, { status: 422, headers: deed.headers ?? {} });
    case 'fail':
      return Response.json({ error: deed.message }, { status: 500, headers: deed.headers ?? {} });
    case 'status':
      return new Response(deed.status === 204 ? null : deed.text, {
        status: deed.status,
        headers: { location: '/', 'content-type': 'text/plain' },
      });
    case 'stream': {
      const reader = deed.chunks[Symbol.asyncIterator]();
      return new Response(
        new ReadableStream({
          async pull(controller) {
            const { done, value } = await reader.next();
            if (done === true) controller.close();
            else controller.enqueue(new Uint8Array(value));
          },
          async cancel() {
            await reader.return?.();
          },
        }),
        { headers: { 'content-type': 'text/plain' } },
      );
    }
    default:
      throw new Error(`A handler of the Fetch style can't ${deed.do}.`);
  }
}

function serve(handler: (request: Request) => Response | Promise<Response>): Promise<RunningService> {
  const listener = getRequestListener(handler, {
    errorHandler: (error) => new Response(String(error), { status: 500 }),
  });
  return serveListener((request, response) => void listener(request, response));
}

const features = {
  statuses: true,
  streaming: true,
  answersTwice: false,
  breaks: false,
  passesOn: false,
  rawBodies: true,
  answerHeaders: true,
  nests: true,
};

const plain: EndpointDriver<Request> = {
  name: 'a Fetch-style handler',
  features,
  authorization: (request) => request.headers.get('authorization') ?? undefined,
  start({ endpoint, gates = 1, handler }) {
    const old = async (request: Request): Promise<Response> => responseTo(await handler(await request.json()));
    let route = old;
    if (endpoint !== undefined) for (let gate = 0; gate < gates; gate++) route = switchedOver(endpoint, route);
    return serve((request) =>
      new URL(request.url).pathname === path ? route(request) : new Response('nowhere', { status: 404 }),
    );
  },
};

/** `reads`: middleware before the gate reads the body, as a logger or a validator does. */
function hono(reads: boolean): EndpointDriver<Request> {
  return {
    name: `Hono, the body ${reads ? '' : 'not '}read before the gate`,
    features: { ...features, passesOn: true },
    authorization: (request) => request.headers.get('authorization') ?? undefined,
    start({ endpoint, gates = 1, handler }) {
      const app = new Hono();
      app.use(async (context, next) => {
        if (reads) await context.req.json();
        await next();
        context.header('x-after', 'yes');
      });
      app.onError((error, context) => context.json({ error: error.message }, 500));
      const old = async (data: unknown, does: OldHandler): Promise<Response | undefined> => {
        const deed = await does(data);
        return deed.do === 'pass' ? undefined : responseTo(deed);
      };
      if (endpoint !== undefined) for (let gate = 0; gate < gates; gate++) app.use(path, switchedOver(endpoint));
      app.post(path, async (context, next) => {
        const data: unknown = reads ? await context.req.json() : await context.req.raw.json();
        return (await old(data, handler)) ?? (await next());
      });
      return serve((request) => app.fetch(request));
    },
  };
}

endpointContract(plain);
endpointContract(hono(false));
endpointContract(hono(true));
