import express from 'express';
import { Pool } from 'pg';
import type { PoolClient } from 'pg';
import { createEndpoint, createTurnout, defineEvent, defineSwitchover, occurrence, on } from 'turnout';
import type { Reply, RpcAnswer, RpcCall } from 'turnout';
import { switchedOver } from 'turnout/express';
import { rpcFetch } from 'turnout/fetch';
import { pgDatabase } from 'turnout/pg';
import { expectTypeOf, test } from 'vitest';
import { z } from 'zod';

const OrderPlaced = defineEvent({
  name: 'orders.order-placed',
  version: 1,
  topic: 'orders',
  schema: z.object({ orderId: z.string(), total: z.coerce.number() }),
  key: (order) => order.orderId,
});
const database = pgDatabase(new Pool());

test('a switchover’s call knows the event’s data with no type argument', () => {
  const switchover = defineSwitchover({
    name: 'order-email',
    consumer: 'email',
    order: 'none',
    rpc: [
      on(OrderPlaced, (event, call) => {
        expectTypeOf(event.data).toEqualTypeOf<{ orderId: string; total: number }>();
        expectTypeOf(call).toEqualTypeOf<RpcCall>();
        return rpcFetch(call, 'http://email', { json: event.data });
      }),
    ],
  });
  // @ts-expect-error A call gives an answer.
  defineSwitchover({ name: 'order-email', consumer: 'email', order: 'none', rpc: [on(OrderPlaced, () => 'sent')] });
  expectTypeOf(rpcFetch).returns.resolves.toEqualTypeOf<RpcAnswer>();

  const turnout = createTurnout({ source: 'orders', database, switchovers: [switchover] });
  const published = turnout.transaction(async (tx) => {
    expectTypeOf(tx).toEqualTypeOf<PoolClient>();
    await turnout.publishAll(tx, [occurrence(OrderPlaced, { orderId: 'order-1', total: '7' })]);
    // @ts-expect-error The data has to be the event's.
    await turnout.publish(tx, OrderPlaced, { orderId: 1 });
    // @ts-expect-error So it does for one of several.
    occurrence(OrderPlaced, { total: 1 });
    // @ts-expect-error A pool is no transaction.
    await turnout.publish(new Pool(), OrderPlaced, { orderId: 'order-1', total: 7 });
    return turnout.publish(tx, OrderPlaced, { orderId: 'order-1', total: 7 });
  });
  void published.then(async (each) => {
    const reply = await each.reply(switchover);
    expectTypeOf(reply).toEqualTypeOf<Reply>();
    if (reply.route === 'rpc' && reply.status === 'done') expectTypeOf(reply.reply).toEqualTypeOf<RpcAnswer>();
  });
});

test('an endpoint’s authenticate is given the request of its framework', () => {
  const endpoint = createEndpoint({
    consumer: 'email',
    database,
    order: 'none',
    authenticate: (request: express.Request) => request.ip === '127.0.0.1',
  });
  express().post('/', switchedOver(endpoint));
  express().post('/', switchedOver(createEndpoint({ consumer: 'email', database, order: 'none' })));
});
