import { pipeline, Readable } from 'node:stream';
import { json } from 'node:stream/consumers';
import express5 from 'express';
import type { Request, RequestHandler } from 'express';
import express4 from 'express-4';
import { switchedOver } from 'turnout/express';
import { pgDatabase } from 'turnout/pg';
import { migrated } from '../support/migrated.ts';
import { database as migratedDatabase } from '../support/vitest.ts';
import type { PoolClient } from 'pg';
import { afterEach, expect, test } from 'vitest';
import { createEndpoint } from 'turnout';
import { path, serveListener } from './endpoint-http.ts';
import { endpointContract, metadataOfCall } from './endpoint.ts';
import type { EndpointDriver, OldHandler, RunningService } from './endpoint.ts';

const version4 = express4 as unknown as typeof express5;

/** An old handler of Express 5; to one of Express 4, errors have to be handed on. */
function oldHandler(does: OldHandler, rejects: boolean): RequestHandler {
  const handler: RequestHandler = async (request, response, next) => {
    const deed = await does(request.is('application/json') ? request.body : await json(request));
    switch (deed.do) {
      case 'answer':
        return void response.set(deed.headers ?? {}).json(deed.body);
      case 'refuse':
        return void response
          .status(422)
          .set(deed.headers ?? {})
          .json({ error: deed.message });
      case 'fail':
        return void response
          .status(500)
          .set(deed.headers ?? {})
          .json({ error: deed.message });
      case 'status':
        return void response.status(deed.status).set('location', '/').send(deed.text);
      case 'stream':
        return void pipeline(Readable.from(deed.chunks), response.type('text/plain'), () => undefined);
      case 'twice':
        response.json(deed.body);
        for (const wait of [0, 1]) {
          // At once, and while the gate commits.
          if (wait === 1) await new Promise((resolve) => setImmediate(resolve));
          expect(() => response.status(500).json({ second: true })).toThrow('after they are sent');
          response.end('third');
        }
        return;
      case 'break':
        response.write('half of it');
        return void response.destroy();
      case 'pass':
        return next();
    }
  };
  if (rejects) return handler;
  return async (request, response, next) => {
    try {
      await handler(request, response, next);
    } catch (error) {
      next(error);
    }
  };
}

function driver(version: 4 | 5, parser: 'before' | 'after'): EndpointDriver<Request> {
  const express = version === 5 ? express5 : version4;
  return {
    name: `Express ${version}, body parser ${parser} the gate`,
    features: {
      statuses: true,
      streaming: true,
      answersTwice: true,
      breaks: true,
      passesOn: true,
      rawBodies: true,
      answerHeaders: true,
      nests: true,
    },
    authorization: (request) => request.headers.authorization,
    start({ endpoint, gates = 1, handler }) {
      const app = express();
      const gate = endpoint === undefined ? [] : Array.from({ length: gates }, () => switchedOver(endpoint));
      const json = express.json();
      app.post(path, ...(parser === 'before' ? [json, ...gate] : [...gate, json]), oldHandler(handler, version === 5));
      // Every app has one; that of Express prints to the log.
      const onError: express5.ErrorRequestHandler = (error: unknown, _request, response, _next) =>
        void response.status(500).json({ error: String(error) });
      app.use(onError);
      return serveListener(app);
    },
  };
}

// Express 5 with the parser before the gate: test/integration/endpoint.test.ts.
endpointContract(driver(5, 'after'));
endpointContract(driver(4, 'before'));
endpointContract(driver(4, 'after'));

const services: RunningService[] = [];
afterEach(async () => {
  await Promise.all(services.splice(0).map((service) => service.stop()));
});

test('Middleware between the gate and the handler works: headers at the last moment, and an end of its own', async () => {
  const database = pgDatabase((await migratedDatabase({ template: migrated('consumer') })).pool());
  const endpoint = createEndpoint<PoolClient, Request>({ consumer: 'email', database, order: 'none' });
  const app = express5();
  const middleware: RequestHandler = (_request, response, next) => {
    const writeHead = response.writeHead.bind(response) as (...args: unknown[]) => express5.Response;
    const end = response.end.bind(response) as (...args: unknown[]) => express5.Response;
    // As on-headers and express-session do it.
    response.writeHead = (...args: unknown[]) => {
      response.setHeader('x-late', 'yes');
      return writeHead(...args);
    };
    response.end = (...args: unknown[]) => {
      setImmediate(() => end(...args));
      return response;
    };
    next();
  };
  app.post(path, switchedOver(endpoint), middleware, (_request, response) => void response.json({ sent: 'late' }));
  const service = await serveListener(app);
  services.push(service);
  const headers = metadataOfCall();
  for (const outcome of ['applied', 'duplicate']) {
    const reply = await service.call({ headers, body: {} });
    expect(reply).toMatchObject({ status: 200, outcome, body: { sent: 'late' } });
    expect(reply.headers['x-late']).toBe('yes');
  }
});
