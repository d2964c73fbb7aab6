// Reads all that a topic holds, for tests that look at what was really written.
import { randomUUID } from 'node:crypto';
import type { Kafka, KafkaMessage } from 'kafkajs';

/** A message as it lies in a topic. */
export interface StoredMessage {
  readonly partition: number;
  readonly offset: bigint;
  readonly key: string | null;
  readonly value: string | null;
  readonly headers: Readonly<Record<string, string>>;
}

/**
 * All messages of a topic up to its present end, by partition and offset.
 *
 * @example const messages = await readTopic(kafka, 'orders');
 */
export async function readTopic(kafka: Pick<Kafka, 'admin' | 'consumer'>, topic: string): Promise<StoredMessage[]> {
  const admin = kafka.admin();
  await admin.connect();
  const ends = new Map(
    (await admin.fetchTopicOffsets(topic)).map(({ partition, low, high }) => [
      partition,
      { low: BigInt(low), high: BigInt(high) },
    ]),
  );
  await admin.disconnect();
  const missing = new Set([...ends].filter(([, { low, high }]) => high > low).map(([partition]) => partition));
  if (missing.size === 0) return [];

  const found: StoredMessage[] = [];
  const consumer = kafka.consumer({ groupId: `read-${randomUUID()}`, maxWaitTimeInMs: 50 });
  await consumer.connect();
  try {
    await consumer.subscribe({ topics: [topic], fromBeginning: true });
    await new Promise<void>((resolve, reject) => {
      // A broker that has just started may not be ready for groups; kafkajs then starts again by itself.
      consumer.on(consumer.events.CRASH, ({ payload }) => {
        if (!payload.restart) reject(payload.error);
      });
      consumer
        .run({
          autoCommit: false,
          partitionsConsumedConcurrently: ends.size,
          eachBatch: async ({ batch }) => {
            const { high } = ends.get(batch.partition) ?? { high: 0n };
            for (const message of batch.messages) {
              if (!missing.has(batch.partition)) return;
              found.push(stored(batch.partition, message));
              if (BigInt(message.offset) >= high - 1n) missing.delete(batch.partition);
            }
            if (missing.size === 0) resolve();
          },
        })
        .catch(reject);
    });
  } finally {
    await consumer.disconnect();
  }
  return found.sort((a, b) => a.partition - b.partition || Number(a.offset - b.offset));
}

function stored(partition: number, { offset, key, value, headers = {} }: KafkaMessage): StoredMessage {
  const texts = Object.entries(headers).map(([name, header]) => [name, String(header)] as const);
  return {
    partition,
    offset: BigInt(offset),
    key: key?.toString() ?? null,
    value: value?.toString() ?? null,
    headers: Object.fromEntries(texts),
  };
}
