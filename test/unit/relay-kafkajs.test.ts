import { createRequire } from 'node:module';
import { describe, expect, test } from 'vitest';
import { kafkaJsPublisher } from '../../adapters/kafkajs/index.ts';
import type { KafkaPublisherLike } from '../../adapters/kafkajs/index.ts';

const require = createRequire(import.meta.url);
const createProducer = require('kafkajs/src/producer/index.js') as (options: Record<string, unknown>) => unknown;
const { createErrorFromCode } = require('kafkajs/src/protocol/error.js') as {
  createErrorFromCode: (code: number) => Error;
};
const Emitter = require('kafkajs/src/instrumentation/emitter.js') as new () => unknown;

const notLeaderForPartition = 6;

interface Produced {
  readonly topicData: readonly {
    topic: string;
    partitions: readonly { partition: number; messages: readonly { value: Buffer }[] }[];
  }[];
}

/** The producer of kafkajs as it is, on two brokers that are not: broker 1 leads partition 0, and broker 2 partition 1. */
function twoBrokers() {
  const leaders = [1, 2];
  const written: string[] = [];
  let producers = 0;
  const broker = (nodeId: number) => ({
    nodeId,
    initProducerId: async () => ({ producerId: '7', producerEpoch: 0 }),
    async produce({ topicData }: Produced) {
      // The broker that goes on leading answers first.
      for (let turn = 0; turn < nodeId * 5; turn++) await new Promise((resolve) => setImmediate(resolve));
      if (nodeId === 2) throw createErrorFromCode(notLeaderForPartition);
      return {
        topics: topicData.map(({ topic, partitions }) => ({
          topicName: topic,
          partitions: partitions.map(({ partition, messages }) => {
            written.push(...messages.map(({ value }) => `${partition}:${value.toString()}`));
            return { partition, errorCode: 0, baseOffset: '0' };
          }),
        })),
      };
    },
  });
  const brokers = new Map([1, 2].map((nodeId) => [nodeId, broker(nodeId)]));
  const logger: Record<string, unknown> = { info() {}, warn() {}, debug() {}, error() {} };
  logger['namespace'] = () => logger;
  let connected = false;
  const cluster = {
    connectionBuilder: {},
    targetTopics: new Set(['orders']),
    isConnected: () => connected,
    async connect() {
      connected = true;
    },
    async disconnect() {
      connected = false;
    },
    // Broker 2 is being shut down: partition 1 moves to broker 1.
    async refreshMetadata() {
      leaders[1] = 1;
    },
    async refreshMetadataIfNecessary() {},
    async addMultipleTargetTopics() {},
    removeBroker() {},
    findTopicPartitionMetadata: () => leaders.map((leader, partitionId) => ({ partitionId, leader })),
    findLeaderForPartitions: (_: string, partitions: (string | number)[]) =>
      Object.fromEntries(
        [1, 2]
          .map((id) => [id, partitions.map(Number).filter((each) => leaders[each] === id)])
          .filter(([, some]) => (some as number[]).length > 0),
      ),
    findBroker: async ({ nodeId }: { nodeId: string | number }) => brokers.get(Number(nodeId)),
    findControllerBroker: async () => brokers.get(1),
  };
  const kafka = {
    producer(options: Record<string, unknown>) {
      producers++;
      return createProducer({ ...options, cluster, logger, instrumentationEmitter: new Emitter() });
    },
  };
  return { kafka: kafka as unknown as KafkaPublisherLike, written, producers: () => producers };
}

const batch = (partition: number, text: string) => ({
  topic: 'orders',
  partition,
  messages: [{ key: null, value: Buffer.from(text), headers: {} }],
});

describe('kafkaJsPublisher', () => {
  test('rejects when kafkajs leaves out a partition whose leader moved to a broker that had answered', async () => {
    const { kafka, written, producers } = twoBrokers();
    const publisher = kafkaJsPublisher(kafka);
    await publisher.connect();
    await expect(publisher.send([batch(0, 'a'), batch(1, 'b')])).rejects.toMatchObject({
      code: 'TURNOUT_PUBLISH_FAILED',
      details: { partitions: ['orders/1'] },
    });
    expect(written).toEqual(['0:a']);
    // What the relay does next: the same again, by a producer of its own.
    await publisher.send([batch(0, 'a'), batch(1, 'b')]);
    expect(written).toEqual(['0:a', '0:a', '1:b']);
    expect(producers()).toBe(2);
    await publisher.disconnect();
  });

  test('names partitions whose last record is not given in time, after a second look', async () => {
    let looks = 0;
    const kafka = {
      producer: () => ({ connect: async () => undefined, disconnect: async () => undefined }),
      admin: () => ({
        connect: async () => undefined,
        disconnect: async () => undefined,
        listTopics: async () => ['orders'],
        fetchTopicOffsets: async () => [0, 1].map((partition) => ({ partition, low: '0', high: '1' })),
      }),
      consumer: () => ({
        events: {},
        connect: async () => undefined,
        disconnect: async () => undefined,
        subscribe: async () => undefined,
        on: () => undefined,
        seek: () => undefined,
        // It never gives what partition 1 has.
        async run({ eachBatch }: { eachBatch: (payload: unknown) => Promise<void> }) {
          looks++;
          const message = { offset: '0', key: null, value: null, headers: { ce_source: 'orders' } };
          await eachBatch({ batch: { topic: 'orders', partition: 0, messages: [message] } });
        },
      }),
    } as unknown as KafkaPublisherLike;
    const records = await kafkaJsPublisher(kafka, { lastRecordsTimeoutMs: 20 }).lastRecords(['orders']);
    expect(records).toEqual([
      { topic: 'orders', partition: 0, message: { key: null, value: null, headers: { ce_source: 'orders' } } },
      { topic: 'orders', partition: 1, message: undefined },
    ]);
    expect(looks).toBe(2);
  });
});
