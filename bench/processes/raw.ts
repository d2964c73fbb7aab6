// The same messages straight through the same client: no database, no bookkeeping, all messages made before the clock starts.
// Argument: {url, brokers, topic, partitions}. On standard input: `send <after seq> <events> <messages per batch>`. On standard
// output: `sent <events> <milliseconds> <milliseconds of CPU>`.
import { createInterface } from 'node:readline';
import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { producerSettings } from '../../adapters/kafkajs/producer-settings.ts';
import { pgDatabase } from '../../adapters/pg/index.ts';
import type { Message } from '../../src/event/index.ts';
import { toBatches } from '../../src/relay/messages.ts';
import { createCounter } from '../../src/relay/numbers.ts';
import { beginning, prepareSession, readPage } from '../../src/relay/tick-store.ts';

const { url, brokers, topic, partitions } = JSON.parse(process.argv[2] ?? '{}') as {
  url: string;
  brokers: string[];
  topic: string;
  partitions: number;
};
const pool = new Pool({ connectionString: url, max: 1 });
const database = pgDatabase(pool);
const producer = new Kafka({ brokers, logLevel: logLevel.NOTHING }).producer(producerSettings);
await producer.connect();
const say = (line: string): void => void process.stdout.write(`${line}\n`);
type Loaded = (Message & { partition: number })[][];

/**
 * Loaded at once while the clock stands still. All messages at once would make a heap that the collector has to walk again
 * and again while kafkajs allocates, and raw sending a quarter slower.
 */
const chunk = 20_000;

/** The messages that the relay makes of the same rows, by the same code. */
async function load(afterSeq: number, events: number): Promise<Loaded> {
  const session = await database.connect();
  try {
    await prepareSession(session, 'turnout bench');
    const [now] = await session.queryText('select pg_current_snapshot()');
    const all = { tick: 0n, lo: beginning, hi: now?.[0] ?? beginning, numbers: {}, relay: '' };
    const rows = await readPage(session, { ...all, afterSeq: BigInt(afterSeq) }, events);
    const loaded: Loaded = Array.from({ length: partitions }, () => []);
    const batches = toBatches(
      rows,
      createCounter({}, () => 1),
      () => partitions,
    );
    for (const { partition, messages } of batches)
      loaded[partition] = messages.map((message) => ({ ...message, partition }));
    return loaded;
  } finally {
    session.release(true);
  }
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
