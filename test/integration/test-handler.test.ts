import { expect, expectTypeOf, test } from 'vitest';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { defineConsumer } from '../../src/consumer/index.ts';
import { on } from '../../src/event/index.ts';
import { testHandler } from '../../src/testing/index.ts';
import { database } from '../support/vitest.ts';
import { consumerTemplate, eventsOf } from './fixtures/consumer.ts';

const pool = (await database({ template: consumerTemplate })).pool({ max: 3 });
const { placed, noted } = eventsOf('orders');
const consumer = defineConsumer(pgDatabase(pool), {
  name: 'loyalty',
  from: 'now',
  handlers: [
    on(placed, async (event, { tx, attempt, effectKey }) => {
      await tx.query('insert into effect (order_id, step) values ($1, $2)', [event.data.orderId, event.data.step]);
      if (event.data.step < 0) throw new Error('negative');
      return { attempt, effectKey, key: event.key };
    }),
  ],
});

test('runs a handler on an event, shows what it did, and leaves nothing behind', async () => {
  const run = await testHandler(
    consumer,
    placed,
    { orderId: 'a', step: 1 },
    {
      event: { id: '6f1c1e1c-0000-4000-8000-000000000000' },
      check: async (tx) => (await tx.query<{ order_id: string }>('select order_id from effect')).rows,
    },
  );
  expectTypeOf(run).toExtend<{ outcome: string }>();
  expect(run).toEqual({
    outcome: 'returned',
    value: { attempt: 1, effectKey: 'loyalty.6f1c1e1c-0000-4000-8000-000000000000', key: 'a' },
    checked: [{ order_id: 'a' }],
  });
  expect((await pool.query('select from effect')).rowCount).toBe(0);
});

test('gives what the handler threw', async () => {
  const run = await testHandler(consumer, placed, { orderId: 'a', step: -1 });
  expect(run).toEqual({ outcome: 'threw', error: expect.objectContaining({ message: 'negative' }) });
  expect((await pool.query('select from effect')).rowCount).toBe(0);
});

test('lets a failing check through', async () => {
  const check = () => Promise.reject(new Error('not as expected'));
  await expect(testHandler(consumer, placed, { orderId: 'a', step: 1 }, { check })).rejects.toThrow('not as expected');
});

test('refuses data that does not fit the schema, and an event type without a handler', async () => {
  // @ts-expect-error: step is a number
  await expect(testHandler(consumer, placed, { orderId: 'a', step: 'one' })).rejects.toMatchObject({
    code: 'TURNOUT_EVENT_DATA_INVALID',
  });
  await expect(testHandler(consumer, noted, { orderId: 'a', step: 1 })).rejects.toMatchObject({
    code: 'TURNOUT_HANDLER_MISSING',
  });
});
