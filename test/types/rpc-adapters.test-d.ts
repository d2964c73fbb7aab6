import type { UnaryRequest } from '@connectrpc/connect';
import type { handleUnaryCall, MethodDefinition, ServerUnaryCall } from '@grpc/grpc-js';
import { createTRPCClient, httpLink } from '@trpc/client';
import { initTRPC } from '@trpc/server';
import type { CreateExpressContextOptions } from '@trpc/server/adapters/express';
import type { CreateFastifyContextOptions } from '@trpc/server/adapters/fastify';
import type { FetchCreateContextFnOptions } from '@trpc/server/adapters/fetch';
import type { CreateHTTPContextOptions } from '@trpc/server/adapters/standalone';
import type { FastifyRequest } from 'fastify';
import type { Interceptor } from '@connectrpc/connect';
import { Pool } from 'pg';
import { expectTypeOf, test } from 'vitest';
import { createEndpoint } from 'turnout';
import type { RpcAnswer, RpcCall, Turnout } from 'turnout';
import * as connect from 'turnout/connect';
import * as grpc from 'turnout/grpc';
import * as nestjs from 'turnout/nestjs';
import { pgDatabase } from 'turnout/pg';
import * as trpc from 'turnout/trpc';

const database = pgDatabase(new Pool());
const call = {} as RpcCall;
interface Order {
  readonly orderId: string;
}
interface Sent {
  readonly mailId: string;
}

test('gRPC: a handler stays the handler of its method', () => {
  const endpoint = createEndpoint({
    consumer: 'email',
    database,
    order: 'none',
    authenticate: (own: ServerUnaryCall<unknown, unknown>) => own.metadata.get('authorization').length === 1,
  });
  const method = {} as MethodDefinition<Order, Sent>;
  const handler = {} as handleUnaryCall<Order, Sent>;
  expectTypeOf(grpc.switchedOver(endpoint, method, handler)).toEqualTypeOf<handleUnaryCall<Order, Sent>>();
  // @ts-expect-error The handler is of another method.
  grpc.switchedOver(endpoint, method, {} as handleUnaryCall<Sent, Order>);
  expectTypeOf(grpc.rpcGrpc(call, () => ({}) as never)).toEqualTypeOf<Promise<RpcAnswer>>();
});

test('Connect: an interceptor', () => {
  const endpoint = createEndpoint({
    consumer: 'email',
    database,
    order: 'none',
    authenticate: (request: UnaryRequest) => request.header.has('authorization'),
  });
  expectTypeOf(connect.switchedOver(endpoint)).toExtend<Interceptor>();
  expectTypeOf(connect.rpcConnect(call, () => Promise.resolve({}))).toEqualTypeOf<Promise<RpcAnswer>>();
});

test('tRPC: a middleware that changes no types, and wants its context', () => {
  const endpoint = createEndpoint({
    consumer: 'email',
    database,
    order: 'none',
    authenticate: (own: trpc.TrpcCall) => own.headers['authorization'] !== undefined,
  });
  const t = initTRPC.context<{ turnout: trpc.CallContext; user: string }>().create();
  const router = t.router({
    send: t.procedure.use(trpc.switchedOver(endpoint)).mutation(({ ctx }) => {
      expectTypeOf(ctx.user).toEqualTypeOf<string>();
      return { mailId: '1' };
    }),
  });
  const client = createTRPCClient<typeof router>({
    links: [trpc.rpcLink(), httpLink({ url: '', headers: trpc.rpcHeaders })],
  });
  void trpc.rpcTrpc(call, (options) => {
    const sent = client.send.mutate(undefined, options);
    expectTypeOf(sent).resolves.toEqualTypeOf<{ mailId: string }>();
    return sent;
  });
  const without = initTRPC.context<{ user: string }>().create();
  // @ts-expect-error The context has no `callContext`.
  without.procedure.use(trpc.switchedOver(endpoint));
});

test('tRPC: what each adapter gives to createContext', () => {
  expectTypeOf<CreateHTTPContextOptions>().toExtend<trpc.ContextOptions>();
  expectTypeOf<CreateExpressContextOptions>().toExtend<trpc.ContextOptions>();
  expectTypeOf<CreateFastifyContextOptions>().toExtend<trpc.ContextOptions>();
  expectTypeOf<FetchCreateContextFnOptions>().toExtend<trpc.ContextOptions>();
});

test('NestJS: an endpoint for whichever platform, or its token', () => {
  const endpoint = createEndpoint({
    consumer: 'email',
    database,
    order: 'none',
    authenticate: (request: FastifyRequest) => request.headers.authorization !== undefined,
  });
  expectTypeOf(nestjs.SwitchedOver(endpoint)).toEqualTypeOf<MethodDecorator>();
  expectTypeOf(nestjs.SwitchedOver(Symbol('endpoint'))).toEqualTypeOf<MethodDecorator>();
  nestjs.TurnoutModule.forRoot({ turnout: {} as Turnout<unknown> });
  nestjs.TurnoutModule.forRootAsync({ inject: [Pool], useFactory: (pool: Pool) => ({ services: [], pool }) });
  // @ts-expect-error Options come as an object.
  nestjs.TurnoutModule.forRootAsync({ useFactory: () => 'turnout' });
});
