import axios from 'axios';
import express from 'express';
import type { Request, RequestHandler } from 'express';
import express4 from 'express-4';
import type { RequestHandler as RequestHandler4 } from 'express-4';
import fastify from 'fastify';
import type { FastifyRequest, preHandlerHookHandler, preValidationHookHandler } from 'fastify';
import { Hono } from 'hono';
import type { Context, MiddlewareHandler } from 'hono';
import { JSONRPCServer } from 'json-rpc-2.0';
import type { JSONRPCResponse } from 'json-rpc-2.0';
import { Pool } from 'pg';
import { expectTypeOf, test } from 'vitest';
import { z } from 'zod';
import { createEndpoint, defineEvent, defineSwitchover, on } from 'turnout';
import type { Endpoint } from 'turnout';
import { rpcAxios } from 'turnout/axios';
import { switchedOver as expressSwitchedOver } from 'turnout/express';
import { switchedOver as fastifySwitchedOver } from 'turnout/fastify';
import { rpcFetch, switchedOver as fetchSwitchedOver } from 'turnout/fetch';
import type { HonoContextLike } from 'turnout/fetch';
import { switchedOver as jsonRpcSwitchedOver } from 'turnout/json-rpc';
import { pgDatabase } from 'turnout/pg';

const base = { consumer: 'email', database: pgDatabase(new Pool()), order: 'none' } as const;
declare function of<Framework>(): Endpoint<Framework>;

test('Express takes it as middleware', () => {
  const endpoint = createEndpoint({ ...base, authenticate: (request: Request) => request.ip === '::1' });
  expectTypeOf(expressSwitchedOver(endpoint)).toExtend<RequestHandler>();
  expectTypeOf(expressSwitchedOver(endpoint)).toExtend<RequestHandler4>();
  express().post('/orders/:id', express.json(), expressSwitchedOver(endpoint), (request, response) => {
    expectTypeOf(request.params.id).toEqualTypeOf<string>();
    response.json({});
  });
  // Of an endpoint that looks at no request.
  expressSwitchedOver(createEndpoint(base));
  // @ts-expect-error The endpoint looks at requests of another framework.
  expressSwitchedOver(createEndpoint({ ...base, authenticate: (request: FastifyRequest) => request.is404 }));
  express4().post('/orders/:id', express4.json(), expressSwitchedOver(endpoint), (request, response) => {
    expectTypeOf(request.params.id).toEqualTypeOf<string>();
    response.json({});
  });
});

test('Fastify takes it as a hook, also of routes with types of their own', () => {
  const endpoint = createEndpoint({ ...base, authenticate: (request: FastifyRequest) => request.hostname === 'mail' });
  const hook = fastifySwitchedOver(endpoint);
  expectTypeOf(hook).toExtend<preHandlerHookHandler>();
  expectTypeOf(hook).toExtend<preValidationHookHandler>();
  const app = fastify();
  app.addHook('preHandler', hook);
  app.post<{ Body: { orderId: string } }>('/confirmations', { preHandler: hook }, async (request) => {
    expectTypeOf(request.body.orderId).toEqualTypeOf<string>();
    return { sent: true };
  });
  // @ts-expect-error The endpoint looks at requests of another framework.
  fastifySwitchedOver(createEndpoint({ ...base, authenticate: (request: Request) => request.ip === '::1' }));
});

test('handlers of the Fetch style keep what else they are given', () => {
  const endpoint = of<globalThis.Request>();
  expectTypeOf(fetchSwitchedOver(endpoint, () => new Response())).toEqualTypeOf<
    (request: globalThis.Request) => Promise<Response>
  >();
  const withContext = fetchSwitchedOver(
    endpoint,
    (_request: globalThis.Request, context: { params: Promise<{ id: string }> }) => Response.json(context),
  );
  expectTypeOf(withContext).parameter(1).toEqualTypeOf<{ params: Promise<{ id: string }> }>();
});

test('Hono takes it as middleware', () => {
  const gate = fetchSwitchedOver(of<globalThis.Request>());
  expectTypeOf<Context>().toExtend<HonoContextLike>();
  expectTypeOf(gate).toExtend<MiddlewareHandler>();
  const app = new Hono<{ Variables: { user: string } }>();
  app.use('/confirmations', gate);
  app.post('/confirmations/:id', gate, (context) => context.json({ id: context.req.param('id') }));
});

test('a JSON-RPC server keeps what its methods are given', async () => {
  const server = new JSONRPCServer<{ userId: string }>();
  const gated = jsonRpcSwitchedOver(of<Request>(), server);
  const exchange = {} as { request: Request; response: express.Response };
  const request = { jsonrpc: '2.0', id: 1, method: 'send' } as const;
  expectTypeOf(await gated.receive(request, exchange, { userId: '1' })).toEqualTypeOf<
    JSONRPCResponse | JSONRPCResponse[] | null
  >();
  // @ts-expect-error The methods ask for a user.
  void gated.receive(request, exchange, { user: '1' });
  // @ts-expect-error Nobody could tell what came.
  void gated.receive(request);
});

test('what callers give fits a switchover', () => {
  const OrderPlaced = defineEvent({
    name: 'orders.placed',
    version: 1,
    topic: 'orders',
    schema: z.object({ id: z.string() }),
    key: (order) => order.id,
  });
  const own = axios.create();
  defineSwitchover({
    name: 'confirmation',
    consumer: 'email',
    order: 'none',
    rpc: [
      on(OrderPlaced, (event, call) =>
        rpcAxios(call, 'http://email/confirmations', { data: event.data, headers: { a: 'b' }, axios: own }),
      ),
    ],
  });
  defineSwitchover({
    name: 'confirmation',
    consumer: 'email',
    order: 'none',
    rpc: [on(OrderPlaced, (event, call) => rpcFetch(call, 'http://email/confirmations', { json: event.data }))],
  });
  // @ts-expect-error The call says how long it may take.
  void rpcAxios({} as never, 'http://email', { timeout: 1 });
  // @ts-expect-error Every status is an answer.
  void rpcAxios({} as never, 'http://email', { validateStatus: () => false });
});
