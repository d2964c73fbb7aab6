import type { EachBatchPayload } from 'kafkajs';
import { expect, test } from 'vitest';
import { kafkaJsSource } from '../../adapters/kafkajs/source.ts';
import type { KafkaSourceLike } from '../../adapters/kafkajs/source.ts';
import { sleep } from '../../src/lifecycle/index.ts';
import { waitFor } from '../support/wait-for.ts';

type EachBatch = (payload: EachBatchPayload) => Promise<void>;

/** A kafkajs of which the test itself is the fetching part. */
function kafkaInHand(): { kafka: KafkaSourceLike; eachBatch: () => EachBatch } {
  let eachBatch: EachBatch | undefined;
  const done = async (): Promise<void> => undefined;
  const listeners = new Map<string, (event: unknown) => void>();
  const consumer = {
    events: { GROUP_JOIN: 'join', CRASH: 'crash' },
    on: (event: string, listener: (event: unknown) => void) => listeners.set(event, listener),
    connect: done,
    subscribe: done,
    async run(options: { eachBatch: EachBatch }) {
      eachBatch = options.eachBatch;
      listeners.get('join')!({ payload: { memberAssignment: { orders: [0] } } });
    },
    seek: () => undefined,
    pause: () => undefined,
    resume: () => undefined,
    commitOffsets: done,
    disconnect: done,
  };
  const admin = {
    connect: done,
    disconnect: done,
    listTopics: async () => ['orders'],
    fetchTopicOffsets: async () => [{ partition: 0, offset: '9', low: '0', high: '9' }],
  };
  const kafka = { admin: () => admin, consumer: () => consumer } as unknown as KafkaSourceLike;
  return { kafka, eachBatch: () => eachBatch! };
}

test('batches of one partition come one after the other, also when several are handed out at once', async () => {
  const { kafka, eachBatch } = kafkaInHand();
  let inHand = 0;
  let most = 0;
  const seen: bigint[] = [];
  const membership = await kafkaJsSource(kafka).join({
    group: 'email',
    topics: ['orders'],
    onAssigned: async () => [{ topic: 'orders', partition: 0, offset: 0n }],
    async onBatch({ messages }) {
      most = Math.max(most, ++inHand);
      seen.push(messages[0]!.offset);
      await sleep(20);
      inHand--;
      return { next: messages.at(-1)!.offset + 1n };
    },
  });
  const batchAt = (offset: string): EachBatchPayload =>
    ({
      batch: {
        topic: 'orders',
        partition: 0,
        fetchedOffset: offset,
        messages: [{ offset, key: null, value: null, headers: {} }],
        lastOffset: () => offset,
      },
      heartbeat: async () => undefined,
      isRunning: () => true,
      isStale: () => false,
      resolveOffset: () => undefined,
    }) as unknown as EachBatchPayload;
  await waitFor(() => eachBatch() !== undefined);
  // Twice the same, as when a leader changes: the second of them is not wanted any more when its turn comes.
  await Promise.all(['0', '1', '1', '2'].map((offset) => eachBatch()(batchAt(offset))));
  expect(most).toBe(1);
  expect(seen.slice(0, 2)).toEqual([0n, 1n]);
  expect(new Set(seen).size).toBe(seen.length);
  await membership.close();
});
