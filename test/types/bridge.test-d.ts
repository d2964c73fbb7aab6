import { expectTypeOf, test } from 'vitest';
import type { Request } from 'express';
import {
  createCapture,
  createTurnout,
  defineBridge,
  defineConfig,
  defineEvent,
  defineProxy,
  on,
  proxyRoute,
} from 'turnout';
import type { Database, Endpoint, RpcAnswer, SwitchoverDefinition } from 'turnout';
import { switchedOver } from 'turnout/express';
import type { PoolClient } from 'pg';
import { z } from 'zod';

declare const database: Database<PoolClient>;
declare const switchover: SwitchoverDefinition;
declare const answer: RpcAnswer;
const Placed = defineEvent({
  name: 'orders.placed',
  version: 1,
  topic: 'orders',
  schema: z.object({ id: z.string(), at: z.string().transform((text) => new Date(text)) }),
  key: (order) => order.id,
});
const turnout = createTurnout({ source: 'orders', database });

test('a bridge’s calls know their event', () => {
  const bridge = defineBridge(database, {
    name: 'crm',
    order: 'key',
    from: 'now',
    calls: [
      on(Placed, (event) => {
        expectTypeOf(event.data).toEqualTypeOf<{ id: string; at: Date }>();
        return answer;
      }),
    ],
  });
  defineConfig({ bridges: [bridge] });
});

test('a capture gives what its event takes, and fits where an endpoint does', () => {
  const capture = createCapture(turnout, { event: Placed, data: () => ({ id: 'a', at: '2026-01-01' }) });
  expectTypeOf(capture).toExtend<Endpoint>();
  switchedOver(
    createCapture(turnout, {
      event: Placed,
      data: ({ original }: { original: Request }) => ({ id: original.path, at: '' }),
    }),
  );
  // @ts-expect-error The event takes a text.
  createCapture(turnout, { event: Placed, data: () => ({ id: 'a', at: new Date() }) });
});

test('a proxy’s route gives what its event takes', () => {
  const route = proxyRoute(Placed, { method: 'POST', path: '/', switchover, data: () => ({ id: 'a', at: '' }) });
  // @ts-expect-error There is no id.
  proxyRoute(Placed, { method: 'POST', path: '/', switchover, data: () => ({ at: '' }) });
  const listen = { port: 0 };
  const proxy = defineProxy({
    name: 'p',
    source: 'orders',
    turnout,
    database,
    listen,
    target: 'http://a',
    routes: [route],
  });
  defineConfig({ proxies: [proxy] });
});
