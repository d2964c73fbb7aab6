import { Kafka, logLevel } from 'kafkajs';
import { afterAll } from 'vitest';
import { kafkaJsSource } from '../../adapters/kafkajs/source.ts';
import { sharedKafka } from '../support/vitest.ts';
import { sourceContract } from './source.ts';

const { brokers } = await sharedKafka();
const kafka = new Kafka({ clientId: 'source-contract', brokers: [...brokers], logLevel: logLevel.NOTHING });
const admin = kafka.admin();
const producer = kafka.producer({ createPartitioner: () => ({ message }) => message.partition ?? 0 });
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
