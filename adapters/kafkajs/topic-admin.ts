import type { Kafka } from 'kafkajs';
import type { TopicAdmin } from '../../src/relay/index.ts';
import { asBrokerError } from './kafka-errors.ts';

/**
 * Creates and describes topics through kafkajs. Needs the permission to describe and create topics, and nothing else.
 *
 * @example
 * const changes = await applyTopics(kafkaJsTopics(kafka), [OrderPlaced], { dryRun: true });
 */
export function kafkaJsTopics(kafka: Pick<Kafka, 'admin'>): TopicAdmin {
  type Admin = ReturnType<Kafka['admin']>;

  async function withAdmin<Result>(work: (admin: Admin) => Promise<Result>): Promise<Result> {
    const admin = kafka.admin({ retry: { retries: 3 } });
    try {
      await admin.connect();
      return await work(admin);
    } catch (error) {
      throw asBrokerError(error, 'The broker can’t be asked');
    } finally {
      await admin.disconnect().catch(() => undefined);
    }
  }

  return {
    describe: (topics) =>
      withAdmin(async (admin) => {
        const all = new Set(await admin.listTopics());
        const existing = topics.filter((topic) => all.has(topic));
        if (existing.length === 0) return [];
        const metadata = await admin.fetchTopicMetadata({ topics: existing });
        return metadata.topics.map(({ name, partitions }) => ({ name, partitions: partitions.length }));
      }),
    create: (topics) =>
      withAdmin(async (admin) => {
        if (topics.length === 0) return;
        // -1: the broker's default.
        const wanted = topics.map(({ name, partitions }) => ({
          topic: name,
          numPartitions: partitions,
          replicationFactor: -1,
        }));
        await admin.createTopics({ topics: wanted, waitForLeaders: true });
      }),
    identify: () =>
      withAdmin(async (admin) => {
        await admin.describeCluster();
        // Kafka tells its version to nobody who asks in a protocol that kafkajs speaks.
        return { name: 'Apache Kafka', version: undefined };
      }),
  };
}
