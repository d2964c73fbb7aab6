// The same messages straight through the same client: no database, no bookkeeping, all messages made before the clock starts.
// Argument: {url, brokers, topic, partitions}. On standard input: `send <after seq> <events> <messages per batch>`. On standard
// output: `sent <events> <milliseconds> <milliseconds of CPU>`.
import { createInterface } from 'node:readline';
import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { producerSettings } from '../../adapters/kafkajs/producer-settings.ts';
import { encodeEnvelope, partitionOf } from '../../src/event/index.ts';
import type { Message } from '../../src/event/index.ts';

const { url, brokers, topic, partitions } = JSON.parse(process.argv[2] ?? '{}') as {
  url: string;
  brokers: string[];
  topic: string;
  partitions: number;
};
const pool = new Pool({ connectionString: url, max: 1 });
const producer = new Kafka({ brokers, logLevel: logLevel.NOTHING }).producer(producerSettings);
await producer.connect();
const say = (line: string): void => void process.stdout.write(`${line}\n`);
type Loaded = (Message & { partition: number })[][];

/**
 * Loaded at once while the clock stands still. All messages at once would make a heap that the collector has to walk again
 * and again while kafkajs allocates, and raw sending a quarter slower.
 */
const chunk = 20_000;

interface Stored {
  seq: string;
  id: string;
  source: string;
  aggregateid: string;
  type: string;
  version: number;
  payload: string;
  occurred_at: Date;
}

/** The messages that the relay makes of the same rows. */
async function load(afterSeq: number, events: number): Promise<Loaded> {
  const { rows } = await pool.query<Stored>(
    `select o.seq::text, o.id::text, o.source, o.aggregateid, o.type, o.version, o.payload::text, o.occurred_at
      from turnout.outbox o where o.seq > $1 order by o.seq limit $2`,
    [afterSeq, events],
  );
  const loaded: Loaded = Array.from({ length: partitions }, () => []);
  for (const row of rows) {
    const seq = BigInt(row.seq);
    const partition = partitionOf(row.aggregateid, seq, partitions);
    const message = encodeEnvelope({
      id: row.id,
      type: row.type,
      version: row.version,
      source: row.source,
      topic,
      key: row.aggregateid,
      time: row.occurred_at,
      payload: row.payload,
      seq,
      sequence: { generation: 1, number: BigInt(loaded[partition]!.length + 1) },
      routes: undefined,
      headers: {},
      refused: undefined,
    });
    loaded[partition]!.push({ ...message, partition });
  }
  return loaded;
}

/** As the relay does: two sends in flight, each with half of the partitions, and one send at a time for each partition. */
async function send(loaded: Loaded, batchMessages: number): Promise<void> {
  const half = Math.ceil(partitions / 2);
  const lanes = [loaded.slice(0, half), loaded.slice(half)];
  await Promise.all(
    lanes.map(async (lane) => {
      const longest = Math.max(...lane.map((messages) => messages.length));
      for (let from = 0; from < longest; from += batchMessages) {
        const messages = lane.flatMap((all) => all.slice(from, from + batchMessages));
        await producer.sendBatch({ acks: -1, topicMessages: [{ topic, messages }] });
      }
    }),
  );
}

async function sendInChunks(afterSeq: number, events: number, batchMessages: number): Promise<string> {
  let sent = 0;
  let ms = 0;
  let cpuMicros = 0;
  for (let done = 0; done < events; done += chunk) {
    const loaded = await load(afterSeq + done, Math.min(chunk, events - done));
    const began = performance.now();
    const cpu = process.cpuUsage();
    await send(loaded, batchMessages);
    ms += performance.now() - began;
    const { user, system } = process.cpuUsage(cpu);
    cpuMicros += user + system;
    sent += loaded.reduce((sum, each) => sum + each.length, 0);
  }
  return `sent ${sent} ${ms} ${cpuMicros / 1_000}`;
}

for await (const line of createInterface({ input: process.stdin })) {
  const [command, afterSeq, events, batchMessages] = line.split(' ');
  if (command === 'send') say(await sendInChunks(Number(afterSeq), Number(events), Number(batchMessages)));
}
await producer.disconnect();
await pool.end();
