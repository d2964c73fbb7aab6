import { Kafka, logLevel } from 'kafkajs';
import { kafkaJsPublisher, kafkaJsTopics } from '../../adapters/kafkajs/index.ts';
import { freePort } from '../support/index.ts';
import { readTopic } from '../support/topic-reader.ts';
import { sharedKafka } from '../support/vitest.ts';
import { publisherContract } from './publisher.ts';

const { brokers } = await sharedKafka();
const kafka = new Kafka({ clientId: 'publisher-contract', brokers: [...brokers], logLevel: logLevel.NOTHING });
const nowhere = new Kafka({
  brokers: [`127.0.0.1:${await freePort()}`],
  logLevel: logLevel.NOTHING,
  retry: { retries: 1, initialRetryTime: 20 },
});

publisherContract('kafkajs', () => ({
  publisher: () => kafkaJsPublisher(kafka),
  createTopic: (name, partitions) => kafkaJsTopics(kafka).create([{ name, partitions }]),
  async read(topic) {
    const messages = await readTopic(kafka, topic);
    return messages.map(({ partition, key, value, headers }) => ({
      partition,
      key,
      value: value === null ? null : Buffer.from(value),
      headers,
    }));
  },
  // Apache Kafka's default is 1 MiB.
  tooLargeBytes: 1_100_000,
  unreachable: () => kafkaJsPublisher(nowhere),
}));
