// A consumer whose database and broker go away while it works, and come back: it waits, says so, and loses nothing.
import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { kafkaJsSource } from '../../adapters/kafkajs/source.ts';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { defineConsumer, runConsumer } from '../../src/consumer/index.ts';
import type { Service } from '../../src/lifecycle/index.ts';
import { on } from '../../src/event/index.ts';
import { createDatabase, startKafka, startPostgres, uniqueName, waitFor } from '../support/index.ts';
import type { Kafka as KafkaPart, Postgres } from '../support/index.ts';
import { consumerTemplate, eventsOf, memoryLogger, messageOf } from '../integration/fixtures/consumer.ts';

let postgres: Postgres;
let kafkaPart: KafkaPart;

beforeAll(async () => {
  [postgres, kafkaPart] = await Promise.all([
    startPostgres({ restartable: true, durable: true }),
    startKafka({ restartable: true }),
  ]);
}, 180_000);
afterAll(async () => {
  await Promise.all([postgres?.stop(), kafkaPart?.stop()]);
}, 60_000);

const topic = uniqueName('orders');

test('it waits for both at the start and midway, and has every effect once', async () => {
  const database = await createDatabase(postgres, { template: consumerTemplate });
  // As in the README: nobody listens to the pool's 'error', which would end the process with the first connection that is lost.
  const pool = new Pool({ connectionString: database.url, max: 6, connectionTimeoutMillis: 2_000 });
  const kafka = new Kafka({ clientId: 'outages', brokers: [...kafkaPart.brokers], logLevel: logLevel.NOTHING });
  const { placed } = eventsOf(topic);
  const logger = memoryLogger();
  const consumer = defineConsumer(pgDatabase(pool), {
    name: uniqueName('email'),
    from: 'beginning',
    handlers: [
      on(placed, async (event, { tx }) => {
        await tx.query('insert into effect (order_id, step) values ($1, $2)', [event.data.orderId, event.data.step]);
      }),
    ],
  });

  let last = 0;
  async function write(count: number): Promise<void> {
    const producer = kafka.producer({ createPartitioner: () => () => 0, retry: { retries: 20, maxRetryTime: 1_000 } });
    await producer.connect();
    const messages = Array.from({ length: count }, () =>
      messageOf(topic, { orderId: 'a', step: ++last, number: last }),
    );
    await producer.send({ topic, acks: -1, messages });
    await producer.disconnect();
  }
  const count = async (): Promise<number> =>
    (await pool.query<{ count: number }>('select count(*)::integer as count from effect')).rows[0]!.count;
  const untilDone = (): Promise<unknown> =>
    waitFor(async () => (await count()) >= last, { what: `${last} effects`, deadlineMs: 60_000, everyMs: 100 });
  /** Waits for a log line, since the last outage began. */
  let outageAt = 0;
  const untilLogged = async (text: RegExp): Promise<void> => {
    const since = (): string[] => logger.lines.slice(outageAt).map((line) => line.message);
    try {
      await waitFor(() => since().some((line) => text.test(line)), {
        what: `the log line ${text}`,
        deadlineMs: 60_000,
      });
    } catch (error) {
      throw new Error(`Logged instead: ${[...new Set(since())].join(' | ') || 'nothing'}`, { cause: error });
    }
  };

  const admin = kafka.admin();
  await admin.connect();
  await admin.createTopics({ topics: [{ topic, numPartitions: 1 }], waitForLeaders: true });
  await admin.disconnect();
  await write(5);

  await postgres.kill();
  const service: Service = runConsumer(consumer, { source: kafkaJsSource(kafka, { sessionTimeoutMs: 6_000 }), logger });
  const started = service.start();
  await untilLogged(/not there yet/);
  await postgres.restart();
  await started;
  await untilDone();

  outageAt = logger.lines.length;
  await postgres.kill();
  await write(5);
  await untilLogged(/does not answer; the event waits/);
  await postgres.restart();
  await untilDone();

  outageAt = logger.lines.length;
  await kafkaPart.kill();
  await untilLogged(/broker was lost/);
  await kafkaPart.restart();
  await write(5);
  await untilDone();

  await service.stop();
  const { rows } = await pool.query<{ step: number }>('select step from effect order by id');
  expect(rows.map((row) => row.step)).toEqual(Array.from({ length: last }, (_, index) => index + 1));
  expect((await pool.query('select kind from turnout.alarm')).rows).toEqual([]);
  await pool.end();
  await database.drop();
}, 240_000);
