// `npm run bench:relay -- [--json] [--events n] [--rounds n]`: what the relay makes of the client's rate, and how long an event
// takes from its commit to a consumer. See bench/README.md.
import { parseArgs } from 'node:util';
import { createRequire } from 'node:module';
import { Client } from 'pg';
import { Kafka, logLevel } from 'kafkajs';
import { kafkaJsTopics } from '../adapters/kafkajs/index.ts';
import { createDatabase, spawnNode, startKafka, startPostgres, waitFor } from '../test/support/index.ts';
import type { NodeProcess } from '../test/support/index.ts';
import { producerTemplate } from '../test/support/producer.ts';

const { values } = parseArgs({
  options: { json: { type: 'boolean' }, events: { type: 'string' }, rounds: { type: 'string' } },
});
const events = Number(values.events ?? 200_000);
const rounds = Number(values.rounds ?? 5);
const partitions = 6;
const wantedRatio = 0.75;
const batchSizes = [100, 250, 500, 1_000];
const say = (text: string): void => void process.stderr.write(`${text}\n`);
const processFile = (name: string): URL => new URL(`./processes/${name}.ts`, import.meta.url);

// With fsync: a tick's commit is part of what is measured.
const [postgres, kafka] = await Promise.all([startPostgres({ durable: true }), startKafka()]);
const admin = kafkaJsTopics(new Kafka({ brokers: [...kafka.brokers], logLevel: logLevel.NOTHING }));

/** A database with a source and a topic, both called `bench`. */
async function benchDatabase(topic: string): Promise<{ url: string; client: Client; drop: () => Promise<void> }> {
  const database = await createDatabase(postgres, { template: producerTemplate });
  const client = new Client({ connectionString: database.url });
  await client.connect();
  await admin.create([{ name: topic, partitions }]);
  await client.query(`select turnout.register_events('bench', $1, $2)`, [
    JSON.stringify([{ name: topic, partitions }]),
    JSON.stringify([{ name: 'bench.event', version: 1, topic, aggregate: 'bench', ordering: 'key' }]),
  ]);
  return {
    url: database.url,
    client,
    async drop() {
      await client.end();
      await database.drop();
    },
  };
}

/** Events of about 400 bytes, in transactions of a thousand. */
async function commitEvents(client: Client, topic: string, count: number): Promise<void> {
  for (let done = 0; done < count; done += 1_000) {
    await client.query(
      `insert into turnout.outbox (id, source, topic, aggregatetype, aggregateid, type, version, payload)
        select gen_random_uuid(), 'bench', $1, 'bench', 'key-' || (random() * 5000)::integer, 'bench.event', 1,
               json_build_object('orderId', 'order-' || n, 'note', repeat('x', 360))
        from generate_series($2::integer, $2::integer + 999) n`,
      [topic, done],
    );
  }
  await client.query('analyze turnout.outbox');
}

interface Run {
  /** Events per second. */
  readonly rate: number;
  /** CPU of the sending process for each event, in microseconds: what is left of a comparison on a busy machine. */
  readonly cpuMicros: number;
}

function runOf(count: number, ms: number, cpuMs: number): Run {
  return { rate: (count / ms) * 1_000, cpuMicros: (cpuMs / count) * 1_000 };
}

function medianRun(runs: readonly Run[]): Run {
  return { rate: median(runs.map(({ rate }) => rate)), cpuMicros: median(runs.map(({ cpuMicros }) => cpuMicros)) };
}

async function drain(): Promise<{ raw: Run; relay: Run; batch: number }> {
  const { url, client, drop } = await benchDatabase('drained');
  await admin.create([{ name: 'raw', partitions }]);
  const relay = spawnNode(processFile('relay'), [JSON.stringify({ url, brokers: kafka.brokers })]);
  const raw = spawnNode(processFile('raw'), [
    JSON.stringify({ url, brokers: kafka.brokers, topic: 'raw', partitions }),
  ]);
  const rawRun = async (afterSeq: number, count: number, batch: number): Promise<Run> => {
    raw.send(`send ${afterSeq} ${count} ${batch}`);
    const [, sent, ms, cpuMs] = await raw.line(/^sent (\d+) ([\d.]+) ([\d.]+)$/, { deadlineMs: 120_000 });
    return runOf(Number(sent), Number(ms), Number(cpuMs));
  };
  const relayRun = async (count: number): Promise<Run> => {
    relay.send('start');
    for (;;) {
      const [, published, ms, cpuMs] = await relay.line(/^published (\d+) ([\d.]+) ([\d.]+) [\d.]+$/, {
        deadlineMs: 120_000,
      });
      if (Number(published) < count) continue;
      relay.send('stop');
      await relay.line(/^stopped$/, { deadlineMs: 30_000 });
      return runOf(count, Number(ms), Number(cpuMs));
    }
  };
  try {
    const warmUp = 20_000;
    await commitEvents(client, 'drained', warmUp);
    await relayRun(warmUp);
    for (const batch of batchSizes) await rawRun(0, warmUp, batch);
    const tried = new Map<number, number>();
    for (const batch of [...batchSizes, ...batchSizes])
      tried.set(batch, Math.max(tried.get(batch) ?? 0, (await rawRun(0, warmUp, batch)).rate));
    const best = Math.max(...tried.values());
    const batch = batchSizes.find((size) => tried.get(size) === best) ?? 250;
    say(`raw, by messages a batch: ${[...tried].map(([size, rate]) => `${size}: ${Math.round(rate)}/s`).join(', ')}`);

    const runs = { raw: [] as Run[], relay: [] as Run[] };
    let seq = warmUp;
    for (let round = 1; round <= rounds; round++) {
      await commitEvents(client, 'drained', events);
      // Whoever comes second finds a broker that is still writing out: each comes second in turn.
      const order = round % 2 === 0 ? (['raw', 'relay'] as const) : (['relay', 'raw'] as const);
      for (const which of order)
        runs[which].push(which === 'raw' ? await rawRun(seq, events, batch) : await relayRun(events));
      seq += events;
      const shown = (run: Run): string => `${Math.round(run.rate)}/s (${run.cpuMicros.toFixed(1)} µs of CPU an event)`;
      say(`round ${round}: raw ${shown(runs.raw.at(-1)!)}, relay ${shown(runs.relay.at(-1)!)}`);
    }
    return { raw: medianRun(runs.raw), relay: medianRun(runs.relay), batch };
  } finally {
    await Promise.all([relay.kill('SIGKILL'), raw.kill('SIGKILL')]);
    await drop();
  }
}

async function latency(rate: number): Promise<{ p50: number; p99: number; events: number; lost: number }> {
  const topic = `latency-${rate}`;
  const { url, drop } = await benchDatabase(topic);
  const relay = spawnNode(processFile('relay'), [JSON.stringify({ url, brokers: kafka.brokers })]);
  const consumer = spawnNode(processFile('consumer'), [JSON.stringify({ brokers: kafka.brokers, topic })]);
  const running: NodeProcess[] = [relay, consumer];
  try {
    relay.send('start');
    await relay.line(/^leading$/, { deadlineMs: 30_000 });
    await consumer.line(/^joined$/, { deadlineMs: 30_000 });
    const seconds = 10;
    const warmUpSeconds = 3;
    const writer = spawnNode(processFile('writer'), [JSON.stringify({ url, rate, seconds: seconds + warmUpSeconds })]);
    running.push(writer);
    const total = rate * (seconds + warmUpSeconds);
    await writer.line(/^done$/, { deadlineMs: 120_000 });
    await waitFor(
      async () => {
        consumer.send('count');
        const [, count] = await consumer.line(/^count (\d+)$/);
        return Number(count) >= total;
      },
      { deadlineMs: 30_000, everyMs: 200, what: 'the consumer to have read everything' },
    ).catch(() => undefined);
    consumer.send('report');
    await consumer.line(/^done$/, { deadlineMs: 30_000 });
    const wrote = timesIn(writer.output, 'wrote');
    const read = timesIn(consumer.output, 'read');
    const measured = [...wrote].slice(rate * warmUpSeconds);
    const times = measured
      .flatMap(([id, at]) => (read.has(id) ? [Number(read.get(id)! - at) / 1e6] : []))
      .sort((a, b) => a - b);
    const at = (share: number): number =>
      Math.round((times[Math.min(times.length - 1, Math.floor(times.length * share))] ?? Number.NaN) * 10) / 10;
    const result = {
      p50: at(0.5),
      p99: at(0.99),
      events: measured.length,
      lost: [...wrote.keys()].filter((id) => !read.has(id)).length,
    };
    say(`${rate}/s: p50 ${result.p50} ms, p99 ${result.p99} ms`);
    return result;
  } finally {
    await Promise.all(running.map((each) => each.kill('SIGKILL')));
    await drop();
  }
}

/** Lines `<word> <id> <ns>`; the first of an id counts. */
function timesIn(output: string, word: string): Map<string, bigint> {
  const times = new Map<string, bigint>();
  for (const [, id = '', at = '0'] of output.matchAll(new RegExp(`^${word} (\\S+) (\\d+)$`, 'gm')))
    if (!times.has(id)) times.set(id, BigInt(at));
  return times;
}

function median(numbers: readonly number[]): number {
  const sorted = [...numbers].sort((a, b) => a - b);
  return sorted[sorted.length >> 1] ?? Number.NaN;
}

try {
  const { raw, relay, batch } = await drain();
  const at50 = await latency(50);
  const at1000 = await latency(1_000);
  const ratio = Math.round((relay.rate / raw.rate) * 1_000) / 1_000;
  const lost = at50.lost + at1000.lost;
  const ok = ratio >= wantedRatio && lost === 0;
  const { version } = createRequire(import.meta.url)('kafkajs/package.json') as { version: string };
  const result = {
    ok,
    client: `kafkajs ${version}`,
    events,
    lost,
    raw: Math.round(raw.rate),
    relay: Math.round(relay.rate),
    ratio,
    cpuMicros: { raw: Math.round(raw.cpuMicros * 10) / 10, relay: Math.round(relay.cpuMicros * 10) / 10 },
    batch,
    rounds,
    latency: { 50: { p50: at50.p50, p99: at50.p99 }, 1000: { p50: at1000.p50, p99: at1000.p99 } },
    node: process.version,
    postgres: postgres.version,
    kafka: kafka.version,
  };
  say(`raw ${result.raw}/s, relay ${result.relay}/s, ratio ${ratio}`);
  if (values.json === true) process.stdout.write(`${JSON.stringify(result)}\n`);
  process.exitCode = ok ? 0 : 1;
} finally {
  await Promise.all([postgres.stop(), kafka.stop()]);
}
