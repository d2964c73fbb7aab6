import { Readable } from 'node:stream';
import { Body, Controller, HttpCode, HttpException, Module, Post, Res, StreamableFile } from '@nestjs/common';
import type { Type } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { ExpressAdapter } from '@nestjs/platform-express';
import { FastifyAdapter } from '@nestjs/platform-fastify';
import { SwitchedOver } from 'turnout/nestjs';
import { callOverHttp, path } from './endpoint-http.ts';
import { endpointContract } from './endpoint.ts';
import type { EndpointDriver, OldHandler, OldService } from './endpoint.ts';

interface Request {
  readonly headers: { readonly authorization?: string };
}

interface Response {
  status(status: number): unknown;
  header(name: string, value: string): unknown;
}

async function have(does: OldHandler, data: unknown, response: Response): Promise<unknown> {
  const deed = await does(data);
  switch (deed.do) {
    case 'answer':
      for (const [name, value] of Object.entries(deed.headers ?? {})) response.header(name, value);
      return deed.body;
    case 'refuse':
      for (const [name, value] of Object.entries(deed.headers ?? {})) response.header(name, value);
      throw new HttpException({ error: deed.message }, 422);
    case 'fail':
      for (const [name, value] of Object.entries(deed.headers ?? {})) response.header(name, value);
      throw new HttpException({ error: deed.message }, 500);
    case 'status':
      response.header('location', '/');
      response.status(deed.status);
      return deed.text;
    case 'stream':
      return new StreamableFile(Readable.from(deed.chunks), { type: 'text/plain' });
    case 'twice':
    case 'break':
    case 'pass':
      throw new Error(`${deed.do} is not for controllers.`);
  }
}

/** Decorators as functions: this file is run as it is. */
function controllerOf({ endpoint, gates = 1, handler }: OldService<Request>): Type {
  class Effects {
    have(data: unknown, response: Response): Promise<unknown> {
      return have(handler, data, response);
    }
  }
  const method = Object.getOwnPropertyDescriptor(Effects.prototype, 'have')!;
  Body()(Effects.prototype, 'have', 0);
  Res({ passthrough: true })(Effects.prototype, 'have', 1);
  if (endpoint !== undefined)
    for (let gate = 0; gate < gates; gate++) SwitchedOver(endpoint)(Effects.prototype, 'have', method);
  HttpCode(200)(Effects.prototype, 'have', method);
  Post(path)(Effects.prototype, 'have', method);
  Controller()(Effects);
  return Effects;
}

const driver = (platform: 'Express' | 'Fastify'): EndpointDriver<Request> => ({
  name: `NestJS on ${platform}`,
  features: {
    statuses: true,
    streaming: true,
    answersTwice: false,
    breaks: false,
    passesOn: false,
    answerHeaders: true,
    nests: true,
  },
  authorization: (request) => request.headers.authorization,
  async start(service) {
    class App {}
    Module({ controllers: [controllerOf(service)] })(App);
    const adapter = platform === 'Express' ? new ExpressAdapter() : new FastifyAdapter({ forceCloseConnections: true });
    const app = await NestFactory.create(App, adapter, { logger: false, forceCloseConnections: true });
    await app.listen(0, '127.0.0.1');
    return { call: callOverHttp(await app.getUrl()), stop: () => app.close() };
  },
});

endpointContract(driver('Express'));
endpointContract(driver('Fastify'));
