import { Readable } from 'node:stream';
import { json } from 'node:stream/consumers';
import fastify from 'fastify';
import type { FastifyReply, FastifyRequest } from 'fastify';
import { switchedOver } from 'turnout/fastify';
import { callOverHttp, path } from './endpoint-http.ts';
import { endpointContract } from './endpoint.ts';
import type { Deed, EndpointDriver } from './endpoint.ts';

/** What an old handler does with a reply. */
function act(deed: Deed, reply: FastifyReply): unknown {
  switch (deed.do) {
    case 'answer':
      return reply.headers(deed.headers ?? {}).send(deed.body);
    case 'refuse':
      return reply
        .code(422)
        .headers(deed.headers ?? {})
        .send({ error: deed.message });
    case 'fail':
      return reply
        .code(500)
        .headers(deed.headers ?? {})
        .send({ error: deed.message });
    case 'status':
      return reply.code(deed.status).header('location', '/').type('text/plain').send(deed.text);
    case 'stream':
      return reply.type('text/plain').send(Readable.from(deed.chunks));
    case 'twice':
      void reply.send(deed.body);
      void reply.send({ second: true });
      setImmediate(() => {
        void reply.send({ third: true });
        reply.raw.end('fourth');
      });
      return reply;
    case 'break':
      reply.hijack();
      reply.raw.write('half of it');
      return reply.raw.destroy();
    case 'pass':
      return reply.callNotFound();
  }
}

const features = {
  statuses: true,
  streaming: true,
  answersTwice: true,
  breaks: true,
  passesOn: true,
  rawBodies: true,
  answerHeaders: true,
  nests: true,
};

const ofOneRoute: EndpointDriver<FastifyRequest> = {
  name: 'Fastify 5, preHandler of a route',
  features,
  authorization: (request) => request.headers.authorization,
  async start({ endpoint, gates = 1, handler }) {
    const app = fastify({ forceCloseConnections: true });
    // The handler reads a stream.
    app.addContentTypeParser('application/octet-stream', (_request, payload, done) => done(null, payload));
    app.post(
      path,
      endpoint === undefined ? {} : { preHandler: Array.from({ length: gates }, () => switchedOver(endpoint)) },
      async (request, reply) =>
        await act(await handler(request.body instanceof Readable ? await json(request.body) : request.body), reply),
    );
    return { call: callOverHttp(await app.listen({ host: '127.0.0.1', port: 0 })), stop: () => app.close() };
  },
};

/** Much of what Fastify can do around a handler: hooks of both styles, schemas, its own error handler. */
const ofAnApp: EndpointDriver<FastifyRequest> = {
  name: 'Fastify 5, preValidation of an app',
  features,
  authorization: (request) => request.headers.authorization,
  async start({ endpoint, gates = 1, handler }) {
    const app = fastify({ forceCloseConnections: true });
    app.addContentTypeParser('application/octet-stream', { parseAs: 'buffer' }, (_request, body, done) =>
      done(null, body),
    );
    if (endpoint !== undefined)
      for (let gate = 0; gate < gates; gate++) app.addHook('preValidation', switchedOver(endpoint));
    app.addHook('preHandler', async () => new Promise((resolve) => setImmediate(resolve)));
    app.addHook('onSend', (_request, reply, payload, done) => {
      void reply.header('x-sent', 'yes');
      done(null, payload);
    });
    app.setErrorHandler((error, _request, reply) => reply.code(500).send({ error: `handled: ${String(error)}` }));
    const schema = {
      body: {
        content: {
          'application/json': {
            schema: { type: 'object', required: ['name'], properties: { name: { type: 'string' } } },
          },
        },
      },
      response: { 200: { type: 'object', properties: { sent: { type: 'string' } } } },
    };
    // In the style of callbacks: nothing is returned.
    app.post(path, { schema }, (request, reply) => {
      void (async () => {
        try {
          const { body } = request;
          act(await handler(body instanceof Buffer ? JSON.parse(body.toString()) : body), reply);
        } catch (error) {
          void reply.send(error);
        }
      })();
    });
    return { call: callOverHttp(await app.listen({ host: '127.0.0.1', port: 0 })), stop: () => app.close() };
  },
};

endpointContract(ofOneRoute);
endpointContract(ofAnApp);
