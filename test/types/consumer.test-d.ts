import type { PoolClient } from 'pg';
import type { DataSource, EntityManager } from 'typeorm';
import * as v from 'valibot';
import { expectTypeOf, test } from 'vitest';
import { z } from 'zod';
import { typeOrmDatabase } from '../../adapters/typeorm/index.ts';
import { defineConsumer } from '../../src/consumer/index.ts';
import type { ConsumerDefinition } from '../../src/consumer/index.ts';
import type { Database } from '../../src/database/index.ts';
import { defineEvent, on } from '../../src/event/index.ts';

declare const database: Database<PoolClient>;
declare const dataSource: DataSource;

const OrderPlaced = defineEvent({
  name: 'orders.order-placed',
  version: 1,
  topic: 'orders',
  schema: z.object({ orderId: z.string(), total: z.number(), note: z.string().optional() }),
  key: (order) => order.orderId,
});

const OrderCancelled = defineEvent({
  name: 'orders.order-cancelled',
  version: 1,
  topic: 'orders',
  schema: v.object({ orderId: v.string(), reason: v.picklist(['customer', 'fraud']) }),
  key: (order) => order.orderId,
});

test('a handler knows its event and its transaction without a type argument', () => {
  const consumer = defineConsumer(database, {
    name: 'loyalty',
    from: 'now',
    handlers: [
      on(OrderPlaced, async (event, { tx, signal, attempt, effectKey }) => {
        expectTypeOf(event.data).toEqualTypeOf<{ orderId: string; total: number; note?: string | undefined }>();
        expectTypeOf(event.time).toEqualTypeOf<Date>();
        expectTypeOf(tx).toEqualTypeOf<PoolClient>();
        expectTypeOf(signal).toEqualTypeOf<AbortSignal>();
        expectTypeOf(attempt).toEqualTypeOf<number>();
        expectTypeOf(effectKey).toEqualTypeOf<string>();
      }),
      on(OrderCancelled, async (event, context) => {
        expectTypeOf(event.data).toEqualTypeOf<{ orderId: string; reason: 'customer' | 'fraud' }>();
        expectTypeOf(context.tx).toEqualTypeOf<PoolClient>();
      }),
    ],
  });
  expectTypeOf(consumer).toEqualTypeOf<ConsumerDefinition<PoolClient>>();
});

test('a detached handler has no transaction', () => {
  defineConsumer(database, {
    name: 'mailer',
    from: 'now',
    mode: 'detached',
    handlers: [
      on(OrderPlaced, async (event, context) => {
        expectTypeOf(event.data.orderId).toEqualTypeOf<string>();
        expectTypeOf(context.effectKey).toEqualTypeOf<string>();
        expectTypeOf(context).not.toHaveProperty('tx');
      }),
    ],
  });
});

test('the transaction is the one of the user’s library', () => {
  const analytics = defineConsumer(typeOrmDatabase(dataSource), {
    name: 'analytics',
    from: 'beginning',
    handlers: [on(OrderPlaced, async (_event, { tx }) => expectTypeOf(tx).toEqualTypeOf<EntityManager>())],
  });
  const list: readonly ConsumerDefinition[] = [analytics];
  expectTypeOf(list).toExtend<readonly ConsumerDefinition[]>();
});

test('consumers on several kinds of databases fit one list', () => {
  const one: ConsumerDefinition = defineConsumer(database, {
    name: 'one',
    from: 'now',
    handlers: [on(OrderPlaced, () => undefined)],
  });
  expectTypeOf(one.name).toEqualTypeOf<string>();
});

test('what is wrong is refused by the compiler', () => {
  // @ts-expect-error: `from` has no default
  defineConsumer(database, { name: 'x', handlers: [on(OrderPlaced, () => undefined)] });
  defineConsumer(database, {
    name: 'x',
    from: 'now',
    handlers: [
      on(OrderPlaced, async (event) => {
        // @ts-expect-error: no such field
        void event.data.amount;
      }),
    ],
  });
});
