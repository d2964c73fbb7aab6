import { afterEach, describe, expect, test } from 'vitest';
import { isTurnoutError } from '../../src/errors/index.ts';
import type { Message } from '../../src/event/index.ts';
import type { Publisher } from '../../src/relay/index.ts';
import { uniqueName } from '../support/index.ts';

/** A message as the broker keeps it. */
export interface Kept extends Message {
  readonly partition: number;
}

/** A broker as this suite needs it. */
export interface PublisherUnderTest {
  /** A publisher of its own, as another process would have. */
  publisher(): Publisher;
  createTopic(name: string, partitions: number): Promise<void>;
  /** All that a topic holds, by partition and place. */
  read(topic: string): Promise<readonly Kept[]>;
  /** A message of this many bytes is refused for good. */
  readonly tooLargeBytes: number;
  /** A publisher for a broker that nobody can reach. */
  unreachable(): Publisher;
}

/** What every implementation of the `Publisher` port has to do. */
export function publisherContract(name: string, broker: () => PublisherUnderTest): void {
  describe(`Publisher: ${name}`, () => {
    const open: Publisher[] = [];
    afterEach(async () => {
      await Promise.all(open.splice(0).map((publisher) => publisher.disconnect()));
    });

    async function connected(): Promise<Publisher> {
      const publisher = broker().publisher();
      open.push(publisher);
      await publisher.connect();
      return publisher;
    }

    async function topicOf(partitions: number): Promise<string> {
      const topic = uniqueName('publisher');
      await broker().createTopic(topic, partitions);
      return topic;
    }

    test('writes key, value and headers as they are', async () => {
      const topic = await topicOf(1);
      const publisher = await connected();
      const messages: Message[] = [
        { key: 'käse', value: Buffer.from('{"a":"ü"}'), headers: { ce_id: '1', note: 'héllo' } },
        { key: null, value: Buffer.from(''), headers: {} },
        { key: 'deleted', value: null, headers: { ce_id: '3' } },
      ];
      await publisher.send([{ topic, partition: 0, messages }]);
      expect(await broker().read(topic)).toEqual(messages.map((message) => ({ ...message, partition: 0 })));
    });

    test('keeps the order of each partition, over batches and sends', async () => {
      const topic = await topicOf(3);
      const publisher = await connected();
      for (let round = 0; round < 3; round++) {
        await publisher.send(
          [0, 1, 2].map((partition) => ({ topic, partition, messages: numbered(round * 400, 400) })),
        );
      }
      const kept = await broker().read(topic);
      for (const partition of [0, 1, 2]) expect(keysIn(kept, partition)).toEqual(keysOf(numbered(0, 1_200)));
    });

    test('takes sends at the same time that share no partition', async () => {
      const [topic, other] = [await topicOf(2), await topicOf(1)];
      const publisher = await connected();
      await Promise.all([
        publisher.send([{ topic, partition: 0, messages: numbered(0, 50) }]),
        publisher.send([{ topic, partition: 1, messages: numbered(50, 50) }]),
        publisher.send([{ topic: other, partition: 0, messages: numbered(100, 50) }]),
      ]);
      const kept = await broker().read(topic);
      expect(keysIn(kept, 0)).toEqual(keysOf(numbered(0, 50)));
      expect(keysIn(kept, 1)).toEqual(keysOf(numbered(50, 50)));
      expect(keysIn(await broker().read(other), 0)).toEqual(keysOf(numbered(100, 50)));
    });

    test('refuses a message that is too large, with its whole partition, and goes on afterwards', async () => {
      const topic = await topicOf(3);
      const publisher = await connected();
      const large: Message = { key: 'large', value: Buffer.alloc(broker().tooLargeBytes, 'x'), headers: {} };
      const sending = publisher.send([
        { topic, partition: 0, messages: numbered(0, 2) },
        { topic, partition: 1, messages: [...numbered(0, 1), large, ...numbered(1, 1)] },
        { topic, partition: 2, messages: numbered(0, 2) },
      ]);
      await expect(sending).rejects.toMatchObject({ code: 'TURNOUT_PAYLOAD_TOO_LARGE' });
      // Which one it is shows when the batches are sent one by one.
      await publisher.send([{ topic, partition: 0, messages: numbered(0, 2) }]);
      await expect(publisher.send([{ topic, partition: 1, messages: [large] }])).rejects.toMatchObject({
        code: 'TURNOUT_PAYLOAD_TOO_LARGE',
        details: { topic, partition: 1 },
      });
      expect(keysIn(await broker().read(topic), 1)).toEqual([]);
      await publisher.send([0, 1, 2].map((partition) => ({ topic, partition, messages: numbered(10, 2) })));
      const kept = await broker().read(topic);
      expect(keysIn(kept, 1)).toEqual(['10', '11']);
      // The others may have the first send once, more than once, or not at all; the second comes behind it.
      for (const partition of [0, 2]) expect(keysIn(kept, partition).slice(-2)).toEqual(['10', '11']);
    });

    test('refuses a topic that does not exist, and creates none', async () => {
      const topic = uniqueName('missing');
      const publisher = await connected();
      const error: unknown = await publisher
        .send([{ topic, partition: 0, messages: numbered(0, 1) }])
        .catch((thrown: unknown) => thrown);
      expect(isTurnoutError(error, 'TURNOUT_TOPIC_MISSING') || isTurnoutError(error, 'TURNOUT_PUBLISH_FAILED')).toBe(
        true,
      );
      expect(await publisher.partitionCounts([topic])).toEqual(new Map());
    });

    test('tells the partition counts of the topics that exist', async () => {
      const [one, four] = [await topicOf(1), await topicOf(4)];
      const publisher = await connected();
      expect(await publisher.partitionCounts([one, four, uniqueName('missing')])).toEqual(
        new Map([
          [one, 1],
          [four, 4],
        ]),
      );
      expect(await publisher.partitionCounts([])).toEqual(new Map());
    });

    test('gives the newest record of each partition that has any', async () => {
      const [topic, empty] = [await topicOf(3), await topicOf(1)];
      const publisher = await connected();
      await publisher.send([
        { topic, partition: 0, messages: numbered(0, 40) },
        { topic, partition: 2, messages: numbered(100, 1) },
      ]);
      const records = await publisher.lastRecords([topic, empty, uniqueName('missing')]);
      const seen = records.map(({ partition, message }) => [
        partition,
        message?.key,
        message?.headers['ce_id'],
        message?.value?.toString(),
      ]);
      expect(seen.toSorted(([a], [b]) => Number(a) - Number(b))).toEqual([
        [0, '39', 'id-39', 'value 39'],
        [2, '100', 'id-100', 'value 100'],
      ]);
    });

    test('gives the newest record of each source that shares a partition', async () => {
      const topic = await topicOf(1);
      const publisher = await connected();
      const of = (source: string, id: string): Message => ({
        key: null,
        value: Buffer.from('{}'),
        headers: { ce_source: source, ce_id: id },
      });
      await publisher.send([
        { topic, partition: 0, messages: [of('a', '1'), of('b', '2'), of('b', '3'), of('a', '4'), of('c', '5')] },
      ]);
      const records = await publisher.lastRecords([topic]);
      expect(records).toHaveLength(3);
      expect(new Set(records.map(({ message }) => message?.headers['ce_id']))).toEqual(new Set(['3', '4', '5']));
    });

    test('sends only while it is connected, and can be connected again', async () => {
      const topic = await topicOf(1);
      const publisher = broker().publisher();
      open.push(publisher);
      const send = (from: number): Promise<void> =>
        publisher.send([{ topic, partition: 0, messages: numbered(from, 1) }]);
      await expect(send(0)).rejects.toMatchObject({ code: 'TURNOUT_PUBLISH_FAILED' });
      await publisher.disconnect();
      await publisher.connect();
      await publisher.connect();
      await send(1);
      await publisher.disconnect();
      await publisher.disconnect();
      await expect(send(2)).rejects.toMatchObject({ code: 'TURNOUT_PUBLISH_FAILED' });
      await publisher.connect();
      await send(3);
      expect(keysIn(await broker().read(topic), 0)).toEqual(['1', '3']);
    });

    test('says when the broker is out of reach', async () => {
      const publisher = broker().unreachable();
      open.push(publisher);
      await expect(publisher.connect()).rejects.toMatchObject({ code: 'TURNOUT_BROKER_UNREACHABLE' });
      await expect(publisher.partitionCounts(['any'])).rejects.toMatchObject({ code: 'TURNOUT_BROKER_UNREACHABLE' });
    });
  });
}

function numbered(from: number, count: number): Message[] {
  return Array.from({ length: count }, (_, index) => ({
    key: String(from + index),
    value: Buffer.from(`value ${from + index}`),
    headers: { ce_id: `id-${from + index}` },
  }));
}

function keysOf(messages: readonly Message[]): (string | null)[] {
  return messages.map(({ key }) => key);
}

function keysIn(kept: readonly Kept[], partition: number): (string | null)[] {
  return keysOf(kept.filter((message) => message.partition === partition));
}
