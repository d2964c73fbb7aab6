// The consumer on real Kafka and real Postgres, in processes that are killed, paused and joined by others.
import { Kafka, logLevel } from 'kafkajs';
import type { Pool } from 'pg';
import { afterAll, afterEach, beforeEach, expect, test } from 'vitest';
import { partitionOf } from '../../src/event/index.ts';
import { sleep } from '../../src/lifecycle/index.ts';
import { spawnNode, uniqueName, waitFor } from '../support/index.ts';
import type { NodeProcess } from '../support/index.ts';
import { database, sharedKafka } from '../support/vitest.ts';
import { consumerTemplate, messageOf } from './fixtures/consumer.ts';

const { brokers } = await sharedKafka();
const kafka = new Kafka({ clientId: 'consumer-test', brokers: [...brokers], logLevel: logLevel.NOTHING });
const admin = kafka.admin();
const producer = kafka.producer({
  createPartitioner:
    () =>
    ({ message }) =>
      message.partition ?? 0,
});
await Promise.all([admin.connect(), producer.connect()]);
afterAll(async () => {
  await Promise.all([admin.disconnect(), producer.disconnect()]);
});

let pool: Pool;
let url: string;
let topic: string;
let processes: NodeProcess[];

beforeEach(async () => {
  const created = await database({ template: consumerTemplate });
  pool = created.pool({ max: 4 });
  url = created.url;
  topic = uniqueName('orders');
  processes = [];
});

afterEach(async () => {
  // Paused ones too.
  await Promise.all(processes.map((each) => each.kill('SIGKILL')));
});

async function createTopic(partitions: number): Promise<void> {
  await admin.createTopics({ topics: [{ topic, numPartitions: partitions }], waitForLeaders: true });
}

/** Steps `from` to `to` of each key, sequences counted per partition as the relay does. */
function writer(partitions: number): (keys: readonly string[], from: number, to: number) => Promise<void> {
  const last = new Map<number, number>();
  return async (keys, from, to) => {
    for (let step = from; step <= to; step++) {
      const messages = keys.map((orderId) => {
        const partition = partitionOf(orderId, 0n, partitions);
        const number = (last.get(partition) ?? 0) + 1;
        last.set(partition, number);
        return { ...messageOf(topic, { orderId, step, number }), partition };
      });
      await producer.send({ topic, acks: -1, messages });
    }
  };
}

function startConsumer(worker: string, takesMs = 0): NodeProcess {
  const process = spawnNode(new URL('./fixtures/consumer-process.ts', import.meta.url), [
    url,
    brokers.join(','),
    topic,
    worker,
    String(takesMs),
  ]);
  processes.push(process);
  return process;
}

async function count(): Promise<number> {
  return (await pool.query<{ count: number }>('select count(*)::integer as count from effect')).rows[0]!.count;
}

async function expectOnceInOrder(keys: readonly string[], steps: number): Promise<void> {
  const { rows } = await pool.query<{ order_id: string; steps: number[] }>(
    'select order_id, array_agg(step order by id) as steps from effect group by order_id order by order_id',
  );
  expect(rows.map((row) => row.order_id)).toEqual([...keys].sort());
  for (const row of rows) expect(row.steps).toEqual(Array.from({ length: steps }, (_, index) => index + 1));
  expect((await pool.query('select kind, detail from turnout.alarm')).rows).toEqual([]);
}

const keys = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'];

test('a consumer that is killed in mid-transaction leaves nothing half done, and the next one goes on', async () => {
  await createTopic(1);
  await writer(1)(['a', 'b'], 1, 20);
  let done = 0;
  for (let kill = 1; kill <= 3; kill++) {
    const process = startConsumer(`worker-${kill}`, 30);
    await process.line(/^ready$/, { deadlineMs: 30_000 });
    // Its effect is written, and its transaction open.
    for (let handled = 0; handled < 4; handled++) await process.line(/^handling /, { deadlineMs: 30_000 });
    await process.kill('SIGKILL');
    await waitFor(
      async () =>
        (await pool.query("select from pg_stat_activity where application_name like 'worker-%'")).rowCount === 0,
      { what: 'its connections to be gone' },
    );
    const now = await count();
    expect(now).toBeGreaterThan(done);
    expect(
      (await pool.query<{ next: number }>('select next_offset::integer as next from turnout.position')).rows,
    ).toEqual([{ next: now }]);
    done = now;
  }
  startConsumer('worker-last');
  await waitFor(async () => (await count()) >= 40, { what: 'all effects', deadlineMs: 40_000 });
  await expectOnceInOrder(['a', 'b'], 20);
}, 120_000);

test('two processes share the partitions; one comes, one is killed, one leaves, while events flow', async () => {
  await createTopic(4);
  const write = writer(4);
  let steps = 0;
  /** Writes on and on until something has happened. */
  async function writeUntil(happened: Promise<unknown>): Promise<void> {
    let waiting = true;
    void happened.catch(() => undefined).then(() => (waiting = false));
    do {
      await write(keys, steps + 1, steps + 5);
      steps += 5;
      await sleep(100);
    } while (waiting);
    await happened;
  }
  const handling = (process: NodeProcess): Promise<unknown> => process.line(/^handling /, { deadlineMs: 60_000 });

  const one = startConsumer('one', 1);
  await writeUntil(handling(one));
  const two = startConsumer('two', 1);
  await writeUntil(handling(two));
  await one.kill('SIGKILL');
  const three = startConsumer('three', 1);
  await writeUntil(handling(three));
  await writeUntil(two.kill('SIGTERM').then((exit) => expect(exit).toEqual({ code: 0, signal: null })));
  await waitFor(async () => (await count()) >= keys.length * steps, { what: 'all effects', deadlineMs: 60_000 });
  await expectOnceInOrder(keys, steps);
  const { rows } = await pool.query<{ worker: string }>('select distinct worker from effect order by worker');
  expect(rows.map((row) => row.worker)).toEqual(['one', 'three', 'two']);
}, 180_000);

test('a process that was paused in mid-transaction, and whose partitions went to another, writes nothing more', async () => {
  await createTopic(2);
  const write = writer(2);
  await write(keys, 1, 5);
  const zombie = startConsumer('zombie', 20);
  await zombie.line(/^handling /, { deadlineMs: 30_000 });
  await zombie.line(/^handling /, { deadlineMs: 30_000 });
  zombie.signal('SIGSTOP');
  const heir = startConsumer('heir', 0);
  await waitFor(async () => (await count()) >= keys.length * 5, {
    what: 'the other one to do all',
    deadlineMs: 60_000,
  });
  const before = (
    await pool.query<{ count: number }>("select count(*)::integer as count from effect where worker = 'zombie'")
  ).rows[0]!.count;
  zombie.signal('SIGCONT');
  await write(keys, 6, 15);
  await waitFor(async () => (await count()) >= keys.length * 15, { what: 'the later events', deadlineMs: 60_000 });
  await expectOnceInOrder(keys, 15);
  expect(before).toBeLessThan(keys.length * 5);
  expect(heir.output).toMatch(/did not end; its connection was closed/);
}, 180_000);

test('halts when retention has passed its position', async () => {
  await createTopic(1);
  const write = writer(1);
  await write(['a'], 1, 3);
  const first = startConsumer('first');
  await waitFor(async () => (await count()) === 3, { what: 'three effects', deadlineMs: 30_000 });
  expect(await first.kill('SIGTERM')).toEqual({ code: 0, signal: null });
  await write(['a'], 4, 9);
  await admin.fetchTopicOffsets(topic);
  await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: '6' }] });
  const second = startConsumer('second');
  await second.line(/^failed TURNOUT_POSITION_OUT_OF_RANGE$/, { deadlineMs: 30_000 });
  expect(await count()).toBe(3);
}, 90_000);

test('takes over the offsets that the group has committed before', async () => {
  await createTopic(1);
  await writer(1)(['a'], 1, 5);
  const earlier = kafka.consumer({ groupId: `group-of-${topic}` });
  await earlier.connect();
  await earlier.subscribe({ topic, fromBeginning: true });
  await earlier.run({ autoCommit: false, eachMessage: async () => undefined });
  await earlier.commitOffsets([{ topic, partition: 0, offset: '3' }]);
  await earlier.disconnect();
  startConsumer('new');
  await waitFor(async () => (await count()) === 2, { what: 'the two that are left', deadlineMs: 30_000 });
  expect((await pool.query('select step from effect order by id')).rows).toEqual([{ step: 4 }, { step: 5 }]);
}, 60_000);
