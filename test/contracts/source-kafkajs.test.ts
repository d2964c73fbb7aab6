import { Kafka, logLevel } from 'kafkajs';
import { afterAll, expect, test } from 'vitest';
import { kafkaJsSource } from '../../adapters/kafkajs/source.ts';
import { sleep } from '../../src/lifecycle/index.ts';
import { uniqueName, waitFor } from '../support/index.ts';
import { sharedKafka } from '../support/vitest.ts';
import { sourceContract } from './source.ts';

const { brokers } = await sharedKafka();
const kafka = new Kafka({ clientId: 'source-contract', brokers: [...brokers], logLevel: logLevel.NOTHING });
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

sourceContract('kafkajs', () => ({
  source: () => kafkaJsSource(kafka),
  async createTopic(topic, numPartitions) {
    await admin.createTopics({ topics: [{ topic, numPartitions }], waitForLeaders: true });
  },
  async write({ topic, partition }, messages) {
    await producer.send({ topic, acks: -1, messages: messages.map((message) => ({ ...message, partition })) });
  },
  async deleteBelow({ topic, partition }, offset) {
    // So that this client learns who leads the partition.
    await admin.fetchTopicOffsets(topic);
    await admin.deleteTopicRecords({ topic, partitions: [{ partition, offset: offset.toString() }] });
  },
}));

test('a batch that takes longer than the session time-out does not cost the partition', async () => {
  const [topic, group] = [uniqueName('source'), uniqueName('group')];
  await admin.createTopics({ topics: [{ topic, numPartitions: 1 }], waitForLeaders: true });
  await producer.send({ topic, acks: -1, messages: [{ key: 'a', value: 'a', partition: 0 }] });
  const source = kafkaJsSource(kafka, { sessionTimeoutMs: 6_000 });
  let assignments = 0;
  let wasAborted: boolean | undefined;
  const membership = await source.join({
    group,
    topics: [topic],
    async onAssigned(partitions) {
      assignments++;
      return partitions.map((place) => ({ ...place, offset: 0n }));
    },
    async onBatch({ signal }) {
      await sleep(9_000, signal);
      wasAborted = signal.aborted;
      return { next: 1n };
    },
  });
  await waitFor(async () => (await source.committed(group, topic)).get(0) === 1n, {
    what: 'the committed offset',
    deadlineMs: 20_000,
  });
  await membership.close();
  expect({ assignments, wasAborted }).toEqual({ assignments: 1, wasAborted: false });
});
