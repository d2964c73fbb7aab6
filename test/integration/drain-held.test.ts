// An old endpoint that has applied a number has the held events behind it applied, with no consumer process at hand.
import { randomUUID } from 'node:crypto';
import { expect, onTestFinished, test } from 'vitest';
import { defineConsumer, drainHeld, on, runConsumer } from 'turnout';
import type { Logger } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { inMemoryBroker } from 'turnout/testing';
import { callHeaders, createEndpoint } from '../../src/switchover/index.ts';
import { uniqueName, waitFor } from '../support/index.ts';
import { database } from '../support/vitest.ts';
import { consumerTemplate, eventsOf, memoryLogger, messageOf } from './fixtures/consumer.ts';

/** The events 2, 3 and 5 of a key are held; its consumer has no sweep and, once they are held, no process. */
async function world(fail?: (step: number) => boolean) {
  const pool = (await database({ template: consumerTemplate })).pool({ max: 6 });
  const db = pgDatabase(pool);
  const topic = uniqueName('orders');
  const { placed } = eventsOf(topic);
  const logger = memoryLogger();
  const loyalty = defineConsumer(db, {
    name: 'loyalty',
    from: 'beginning',
    inSwitchover: [placed],
    handlers: [
      on(placed, async (event, { tx }) => {
        if (fail?.(event.data.step)) throw new Error('not this one');
        await tx.query('insert into effect (order_id, step, worker) values ($1, $2, $3)', [
          'a',
          event.data.step,
          'event',
        ]);
      }),
    ],
  });
  const broker = inMemoryBroker();
  await broker.topics().create([{ name: topic, partitions: 1 }]);
  const publisher = broker.publisher();
  await publisher.connect();
  const messages = [2, 3, 5].map((step, index) => {
    const turn = { generation: 1, number: step };
    const routes = [{ consumer: 'loyalty', route: 'event' as const, epoch: 2, shadow: false, turn }];
    return messageOf(topic, { orderId: 'a', step, number: index + 1, routes });
  });
  await publisher.send([{ topic, partition: 0, messages }]);
  const consumer = runConsumer(loyalty, { source: broker.source(), sweepEveryMs: 3_600_000 });
  await consumer.start();
  const held = async (): Promise<number[]> =>
    (
      await pool.query<{ number: string }>('select h.number::text as number from turnout.held h order by h.number')
    ).rows.map((row) => Number(row.number));
  await waitFor(async () => (await held()).length === 3);
  await consumer.stop();

  const endpointOf = (drain?: ReturnType<typeof drainHeld>, more: { logger?: Logger } = {}) => {
    const endpoint = createEndpoint({
      consumer: 'loyalty',
      database: db,
      order: 'key',
      ...(drain && { drain }),
      ...more,
    });
    return async (number: number): Promise<unknown> => {
      const event = {
        id: randomUUID(),
        type: placed.name,
        version: 1,
        source: 'orders',
        topic,
        key: 'a',
        time: new Date(),
        data: {},
        headers: {},
      };
      const headers = callHeaders('loyalty', event, { generation: 1, number });
      const answer = await endpoint.answer({ original: undefined, headers, body: async () => '' }, async () => {
        await pool.query('insert into effect (order_id, step, worker) values ($1, $2, $3)', ['a', number, 'rpc']);
        return { status: 200, headers: {}, body: Buffer.alloc(0) };
      });
      return answer.kind === 'pass' ? undefined : answer.headers['turnout-outcome'];
    };
  };
  const effects = async (): Promise<string[]> =>
    (
      await pool.query<{ text: string }>(`select step || ' ' || worker as text from effect order by effect.id`)
    ).rows.map((row) => row.text);
  return { db, pool, loyalty, logger, held, effects, endpointOf };
}

test('an endpoint with the consumer’s definition drains what waited behind its call', async () => {
  const w = await world();
  const call = w.endpointOf(drainHeld(w.loyalty, { logger: w.logger }));
  expect(await call(1)).toBe('applied');
  await waitFor(async () => (await w.held()).length === 1);
  expect(await w.effects()).toEqual(['1 rpc', '2 event', '3 event']);
  expect(await call(4)).toBe('applied');
  await waitFor(async () => (await w.held()).length === 0);
  expect(await w.effects()).toEqual(['1 rpc', '2 event', '3 event', '4 rpc', '5 event']);
  expect(w.logger.lines).toEqual([]);
});

test('a held event that fails is counted and waits for its next try, the call it came behind stands', async () => {
  const w = await world((step) => step === 3);
  const call = w.endpointOf(drainHeld(w.loyalty, { logger: w.logger }));
  expect(await call(1)).toBe('applied');
  await waitFor(() => w.logger.lines.length === 1);
  expect(w.logger.lines[0]).toMatchObject({ level: 'warn', fields: { attempts: 1, error: 'not this one' } });
  expect(await w.effects()).toEqual(['1 rpc', '2 event']);
  expect(await w.held()).toEqual([3, 5]);
});

test('calls that come at once don’t get in each other’s way', async () => {
  const w = await world();
  const drain = drainHeld(w.loyalty, { logger: w.logger });
  const { rows } = await w.pool.query<{ topic: string }>('select distinct h.topic from turnout.held h');
  const place = { consumer: 'loyalty', source: 'orders', topic: rows[0]!.topic, key: 'a' };
  expect(await w.endpointOf()(1)).toBe('applied');
  await Promise.all([1, 2, 3, 4].map(() => drain(place)));
  expect(await w.effects()).toEqual(['1 rpc', '2 event', '3 event']);
});

test('the definition of another consumer is refused', async () => {
  const w = await world();
  const drain = drainHeld(w.loyalty);
  onTestFinished(() => expect(w.logger.lines).toEqual([]));
  await expect(drain({ consumer: 'email', source: 'orders', topic: 'orders', key: 'a' })).rejects.toMatchObject({
    code: 'TURNOUT_DEFINITION_INVALID',
  });
});
