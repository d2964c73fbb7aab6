import type { Kafka } from 'kafkajs';
import { uniqueName } from '../../../test/support/index.ts';
import type { TopicCount } from './world.ts';

/** Reads a topic from its beginning to where it ends now, and counts records and distinct event ids. */
export async function countRecords(kafka: Kafka, topic: string): Promise<TopicCount> {
  const admin = kafka.admin();
  await admin.connect();
  const ends = await admin.fetchTopicOffsets(topic);
  const left = new Map(
    ends.filter(({ low, high }) => low !== high).map(({ partition, high }) => [partition, BigInt(high)]),
  );
  const ids = new Set<string>();
  let records = 0;
  const groupId = uniqueName('demo-count');
  const consumer = kafka.consumer({ groupId });
  try {
    await consumer.connect();
    await consumer.subscribe({ topics: [topic], fromBeginning: true });
    await new Promise<void>((resolve, reject) => {
      if (left.size === 0) return resolve();
      consumer.on('consumer.crash', ({ payload }) => reject(payload.error));
      consumer
        .run({
          autoCommit: false,
          eachMessage: async ({ partition, message }) => {
            const end = left.get(partition);
            if (end === undefined) return;
            records++;
            ids.add(String(message.headers?.['ce_id']));
            if (BigInt(message.offset) + 1n >= end) left.delete(partition);
            if (left.size === 0) resolve();
          },
        })
        .catch(reject);
    });
  } finally {
    await consumer.disconnect();
    await admin.deleteGroups([groupId]).catch(() => undefined);
    await admin.disconnect();
  }
  return { records, distinct: ids.size };
}
