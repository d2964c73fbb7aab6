// `npm run bench:switchover -- [--json] [--rounds n] [--seconds n] [--deliveries n]`: what switchovers cost the publisher, the caller, and the tables.
// See bench/README.md.
import { loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { startPostgres } from '../../test/support/index.ts';
import { benchDeliveries } from './deliveries.ts';
import { benchOrderLatency } from './order-latency.ts';
import { benchPublish } from './publish.ts';
import { rounded } from './statistics.ts';

const { values } = parseArgs({
  options: {
    json: { type: 'boolean' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    deliveries: { type: 'string' },
    only: { type: 'string' },
  },
});
const rounds = Number(values.rounds ?? 5);
const seconds = Number(values.seconds ?? 1);
const deliveries = Number(values.deliveries ?? 180_000);
const wanted = (part: string): boolean => values.only === undefined || values.only === part;
/** Of the machine, before and after: with more than its processors, waiting for them is what is measured. */
const load = [rounded(loadavg()[0]!, 1)];
const say = (text: string): void => void process.stderr.write(`${text}\n`);

// With fsync: a commit is most of what an order costs.
const postgres = await startPostgres({ durable: true });
try {
  const publish = wanted('publish') ? await benchPublish({ postgres, rounds, seconds, say }) : undefined;
  const latency = wanted('latency') ? await benchOrderLatency({ postgres, rounds, say }) : undefined;
  const tables = wanted('deliveries') ? await benchDeliveries({ postgres, deliveries, say }) : undefined;
  const bars = {
    // Three unordered switchovers against none, by route, connections and keys: the worst of them counts.
    ...(publish === undefined ? {} : { threeUnordered: { value: publish.worstOfThree, limit: 1.5 } }),
    ...(latency === undefined ? {} : { orderP99: { value: latency.p99Ratio, limit: 1.3 } }),
  };
  const ok = Object.values(bars).every(({ value, limit }) => value <= limit) && (tables?.owed ?? 0) === 0;
  load.push(rounded(loadavg()[0]!, 1));
  const result = {
    ok,
    bars,
    publish,
    latency,
    tables,
    rounds,
    load,
    node: process.version,
    postgres: postgres.version,
  };
  for (const [name, { value, limit }] of Object.entries(bars)) say(`${name}: ${value} (at most ${limit})`);
  if (values.json === true) process.stdout.write(`${JSON.stringify(result)}\n`);
  process.exitCode = ok ? 0 : 1;
} finally {
  await postgres.stop();
}
