import { pipeline, Readable } from 'node:stream';
import express5 from 'express';
import type { Request, RequestHandler } from 'express';
import express4 from 'express-4';
import { switchedOver } from 'turnout/express';
import { path, serveListener } from './endpoint-http.ts';
import { endpointContract } from './endpoint.ts';
import type { EndpointDriver, OldHandler } from './endpoint.ts';

const version4 = express4 as unknown as typeof express5;

/** An old handler of Express 5; to one of Express 4, errors have to be handed on. */
function oldHandler(does: OldHandler, rejects: boolean): RequestHandler {
  const handler: RequestHandler = async (request, response, next) => {
    const deed = await does(request.body);
    switch (deed.do) {
      case 'answer':
        return void response.set(deed.headers ?? {}).json(deed.body);
      case 'refuse':
        return void response.status(422).json({ error: deed.message });
      case 'fail':
        return void response.status(500).json({ error: deed.message });
      case 'status':
        return void response.status(deed.status).set('location', '/').send(deed.text);
      case 'stream':
        return void pipeline(Readable.from(deed.chunks), response.type('text/plain'), () => undefined);
      case 'twice':
        response.json(deed.body);
        try {
          response.status(500).json({ second: true });
        } catch {
          // What Express says of headers that are sent.
        }
        response.end('third');
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
    features: { statuses: true, streaming: true, answersTwice: true, breaks: true, passesOn: true },
    authorization: (request) => request.headers.authorization,
    start({ endpoint, handler }) {
      const app = express();
      const gate = endpoint === undefined ? [] : [switchedOver(endpoint)];
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

endpointContract(driver(5, 'before'));
endpointContract(driver(5, 'after'));
endpointContract(driver(4, 'before'));
endpointContract(driver(4, 'after'));
