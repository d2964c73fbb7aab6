// `npm run test:reading -- [--seed n] [--events n] [--json] [--sabotage name] [--control]`
//
// A randomized test of how the outbox is read, against real PostgreSQL and real Kafka: many connections publish in every way
// that makes an outbox hard to read while relay processes are killed and paused at random. Then what was committed is compared
// with what lies in the topic. After that each deliberate breakage is switched on in the shipped code, and has to be noticed;
// with --control their schedules run with nothing broken, and have to be clean.
import { parseArgs } from 'node:util';
import { Kafka, logLevel } from 'kafkajs';
import { Client } from 'pg';
import { kafkaJsTopics } from '../../adapters/kafkajs/index.ts';
import { createDatabase, startKafka, startPostgres, uniqueName, waitFor } from '../support/index.ts';
import { producerTemplate } from '../support/producer.ts';
import { readTopic } from '../support/topic-reader.ts';
import { relays } from './relays.ts';
import type { RelayFaults } from './relays.ts';
import { scenario, sabotages } from './scenarios.ts';
import type { Scenario } from './scenarios.ts';
import { verify } from './verify.ts';
import type { Committed, Verdict } from './verify.ts';
import { prepareReading, runWriters } from './writers.ts';
import type { Written } from './writers.ts';

interface Outcome {
  readonly verdict: Verdict;
  readonly written: Written;
  readonly relays: RelayFaults;
  /** Why it did not even come to an end. */
  readonly stuck: string | undefined;
  /** The relay that ended by itself, if one did. */
  readonly ended: string | undefined;
}

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    events: { type: 'string' },
    json: { type: 'boolean' },
    sabotage: { type: 'string' },
    control: { type: 'boolean' },
  },
});
const seed = Number(values.seed ?? Math.floor(Math.random() * 1_000_000));
const events = Number(values.events ?? 10_000);
if (!Number.isInteger(seed) || !Number.isInteger(events) || events < 1)
  throw new Error('--seed and --events are whole numbers.');
if (values.sabotage !== undefined && !Object.hasOwn(sabotages, values.sabotage)) {
  throw new Error(`There is no sabotage ${values.sabotage}: ${Object.keys(sabotages).join(', ')}.`);
}

const say = (text: string): void => void process.stderr.write(`${text}\n`);
say(`Seed ${seed}: the same seed makes the same transactions and the same faults.`);
const [postgres, kafka] = await Promise.all([startPostgres({ settings: { deadlock_timeout: '100ms' } }), startKafka()]);
const client = new Kafka({ brokers: [...kafka.brokers], logLevel: logLevel.NOTHING });

async function run(name: string, planned: Scenario): Promise<Outcome> {
  const topic = uniqueName('reading');
  const database = await createDatabase(postgres, { template: producerTemplate });
  const admin = new Client({ connectionString: database.url });
  await admin.connect();
  const fleet = relays({ url: database.url, brokers: kafka.brokers, seed, scenario: planned });
  try {
    await kafkaJsTopics(client).create([{ name: topic, partitions: planned.partitions }]);
    await prepareReading(database.url, topic, planned.partitions);
    if (planned.sequenceCache !== undefined)
      await admin.query(`alter sequence turnout.outbox_seq_seq cache ${planned.sequenceCache}`);
    if (!planned.backlogFirst) fleet.start();
    let said = 0;
    const written = await runWriters({
      url: database.url,
      topic,
      seed,
      ...planned,
      onProgress: (committed) => {
        if (committed - said < planned.events / 5) return;
        said = committed;
        say(`${name}: ${committed} events committed`);
      },
    });
    if (planned.backlogFirst) fleet.start();
    fleet.calm();
    let stuck: string | undefined;
    await waitFor(async () => fleet.ended() ?? isDrained(admin), {
      deadlineMs: planned.drainMs,
      everyMs: 50,
      what: 'the outbox to be published',
    }).catch((error: unknown) => (stuck = String(error)));
    stuck = fleet.ended() ?? stuck;
    await fleet.stop();
    const committed = await admin.query<Committed>(
      `select c.event_id::text as id, c.key, c.n::integer from reading.committed c`,
    );
    const verdict = verify(committed.rows, await readTopic(client, topic));
    return { verdict, written, relays: fleet.faults(), stuck, ended: fleet.ended() };
  } finally {
    await fleet.stop();
    await admin.end();
    await database.drop();
  }
}

/** The newest tick is closed, and nothing has become visible since. */
async function isDrained(admin: Client): Promise<boolean> {
  const { rows } = await admin.query<{ drained: boolean }>(
    `select t.lo::text = t.hi::text and not exists (
        select from turnout.outbox o where not pg_visible_in_snapshot(o.xid, t.hi)) as drained
      from turnout.relay_tick t order by t.tick desc limit 1`,
  );
  return rows[0]?.drained === true;
}

function judge(outcome: Outcome, control: boolean): string {
  // A relay that refuses to work loses everything, which says nothing about the breakage.
  if (outcome.ended !== undefined) return `inconclusive: ${outcome.ended}`;
  if (control) return violations(outcome) === 0 ? 'clean' : 'not clean';
  return violations(outcome) > 0 ? 'caught' : 'missed';
}

const violations = ({ verdict }: Outcome): number =>
  verdict.lost + verdict.doubled + verdict.outOfOrder + verdict.uncommitted;

try {
  let ok = true;
  const result: Record<string, unknown> = { seed };
  if (values.sabotage === undefined && values.control !== true) {
    const outcome = await run('reading', scenario(events));
    const { verdict, written, relays: killed, stuck } = outcome;
    ok = violations(outcome) === 0 && stuck === undefined && written.committed >= events;
    const { lost, doubled, outOfOrder, uncommitted, repeated } = verdict;
    Object.assign(result, {
      events: written.committed,
      lost,
      doubled,
      outOfOrder,
      uncommitted,
      repeated,
      faults: { ...killed, ...written.transactions },
      ...(stuck === undefined ? {} : { stuck }),
    });
    say(`reading: ${written.committed} events, ${violations(outcome)} violations, ${repeated} identical repeats`);
    for (const example of [...(stuck === undefined ? [] : [stuck]), ...verdict.examples]) say(`  ${example}`);
  }
  const found: Record<string, string> = {};
  for (const [name, planned] of Object.entries(sabotages)) {
    if (values.sabotage !== undefined && values.sabotage !== name) continue;
    const control = values.control === true;
    const outcome = await run(name, control ? { ...planned, failpoints: [], sequenceCache: 1 } : planned);
    found[name] = judge(outcome, control);
    ok &&= found[name] === (control ? 'clean' : 'caught');
    const { lost, doubled, outOfOrder, uncommitted, examples } = outcome.verdict;
    say(
      `${name}: ${found[name]} (lost ${lost}, doubled ${doubled}, out of order ${outOfOrder}, uncommitted ${uncommitted}); ${examples[0] ?? outcome.stuck ?? ''}`,
    );
  }
  Object.assign(result, { sabotages: found });
  if (values.json === true) process.stdout.write(`${JSON.stringify({ ok, ...result })}\n`);
  process.exitCode = ok ? 0 : 1;
} finally {
  await Promise.all([postgres.stop(), kafka.stop()]);
}
