import { formatSequence, isReservedHeader, partitionOf } from '../event/index.ts';
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
    const message = toMessage(row, key, source, formatSequence(counter.next(source, topic, partition)));
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
 * As `encodeEnvelope` of the row would make it (a test holds the two equal). Here all headers of the usual event are one literal, and its
 * time stays text: for a relay that sends tens of thousands a second, this and the collector's work is what can be saved.
 */
function toMessage(row: Row, key: string | null, source: string, sequence: string): Message {
  const headers: Record<string, string> =
    key === null
      ? {
          ce_specversion: '1.0',
          ce_id: row[column.id]!,
          ce_type: row[column.type]!,
          ce_source: source,
          ce_time: formatTime(row[column.time]!),
          'content-type': 'application/json',
          'turnout-version': row[column.version]!,
          ce_sequence: sequence,
          'turnout-seq': row[column.seq]!,
        }
      : {
          ce_specversion: '1.0',
          ce_id: row[column.id]!,
          ce_type: row[column.type]!,
          ce_source: source,
          ce_time: formatTime(row[column.time]!),
          'content-type': 'application/json',
          'turnout-version': row[column.version]!,
          ce_partitionkey: key,
          ce_sequence: sequence,
          'turnout-seq': row[column.seq]!,
        };
  const routes = row[column.routes] ?? null;
  if (routes !== null) headers['turnout-routes'] = routes;
  const own = row[column.headers] ?? null;
  if (own !== null) Object.assign(headers, JSON.parse(own));
  return { key, value: Buffer.from(row[column.payload]!), headers };
}

/** `2026-11-23 03:36:37.12+00`, as the session's settings have it, becomes `2026-11-23T03:36:37.120Z`. */
function formatTime(text: string): string {
  const fraction = text.slice(20, -3);
  return `${text.slice(0, 10)}T${text.slice(11, 19)}.${fraction.padEnd(3, '0')}Z`;
}

/**
 * What is published in place of a message that the broker refuses for good: the same event id, place, key and number, so that
 * no consumer sees a hole, and the reason instead of the payload. (JSON's null and no tombstone: a compacted topic keeps it.)
 */
export function placeholderOf(message: Message, reason: string): Message {
  const headers = Object.fromEntries(Object.entries(message.headers).filter(([name]) => isReservedHeader(name)));
  return { key: message.key, value: Buffer.from('null'), headers: { ...headers, 'turnout-refused': reason } };
}
