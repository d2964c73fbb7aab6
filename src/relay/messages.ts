import { encodeEnvelope, isReservedHeader, partitionOf } from '../event/index.ts';
import type { Message } from '../event/index.ts';
import type { Counter } from './numbers.ts';
import type { PartitionBatch } from './publisher.ts';
import { column } from './tick-store.ts';
import type { Row } from './tick-store.ts';

/**
 * Numbers the rows of a page and groups them by partition, in the order of `seq` within each. The same rows and the same counts
 * give the same messages. `partitionsOf` gives the recorded partition count of a topic, and throws for one that isn't registered.
 */
export function toBatches(
  rows: readonly Row[],
  counter: Counter,
  partitionsOf: (topic: string) => number,
): PartitionBatch[] {
  const batches = new Map<string, Map<number, Message[]>>();
  for (const row of rows) {
    const topic = row[column.topic]!;
    const key = row[column.key]!;
    const source = row[column.source]!;
    const seq = BigInt(row[column.seq]!);
    const partition = partitionOf(key, seq, partitionsOf(topic));
    const message = encodeEnvelope({
      id: row[column.id]!,
      type: row[column.type]!,
      version: Number(row[column.version]),
      source,
      topic,
      key,
      time: parseTime(row[column.time]!),
      payload: row[column.payload]!,
      seq,
      sequence: counter.next(source, topic, partition),
      routes: row[column.routes] ?? undefined,
      headers: parseHeaders(row[column.headers]),
      refused: undefined,
    });
    let partitions = batches.get(topic);
    if (partitions === undefined) batches.set(topic, (partitions = new Map<number, Message[]>()));
    const messages = partitions.get(partition);
    if (messages === undefined) partitions.set(partition, [message]);
    else messages.push(message);
  }
  return [...batches].flatMap(([topic, partitions]) =>
    [...partitions].map(([partition, messages]) => ({ topic, partition, messages })),
  );
}

/**
 * What is published in place of a message that the broker refuses for good: the same event id, place, key and number, so that
 * no consumer sees a hole, and the reason instead of the payload. (JSON's null and no tombstone: a compacted topic keeps it.)
 */
export function placeholderOf(message: Message, reason: string): Message {
  const headers = Object.fromEntries(Object.entries(message.headers).filter(([name]) => isReservedHeader(name)));
  return { key: message.key, value: Buffer.from('null'), headers: { ...headers, 'turnout-refused': reason } };
}

// `2026-11-23 03:36:37.12+00`, as the session's settings have it.
function parseTime(text: string): Date {
  return new Date(`${text.slice(0, 10)}T${text.slice(11, text.length - 3)}Z`);
}

const none: Readonly<Record<string, string>> = Object.freeze({});

function parseHeaders(text: string | null | undefined): Readonly<Record<string, string>> {
  return text === null || text === undefined ? none : (JSON.parse(text) as Record<string, string>);
}
