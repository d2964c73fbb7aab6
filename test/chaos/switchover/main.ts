// `npm run chaos:switchover -- [--seconds n] [--rate n] [--seed n] [--json] [--sabotage failpoint]`
//
// The real thing under faults: orders at a steady rate over HTTP to several instances, stage changes every second on four switchovers
// (two ordered, two not), processes killed and paused, PostgreSQL and Kafka restarted, calls and answers lost, late and doubled. At the end
// plain SQL over the services' own tables says what was lost, doubled or out of order. With --sabotage the named failpoint of the shipped code is
// switched on in every process, and the run has to fail.
import { mkdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { failpoints } from '../../../src/lifecycle/failpoints.ts';
import { waitFor } from '../../support/index.ts';
import { audit, flipsToEffect, insideCounts, isSettled } from './audit.ts';
import { startFaults } from './faults.ts';
import { startFlips } from './flips.ts';
import { startLoad } from './load.ts';
import { random as randomOf } from '../../reading/random.ts';
import { startWorld } from './world.ts';

const { values } = parseArgs({
  options: {
    seconds: { type: 'string' },
    rate: { type: 'string' },
    seed: { type: 'string' },
    json: { type: 'boolean' },
    sabotage: { type: 'string' },
  },
});
const seconds = Number(values.seconds ?? 180);
const rate = Number(values.rate ?? 20);
const seed = Number(values.seed ?? Math.floor(Math.random() * 1_000_000));
if (values.sabotage !== undefined && !Object.hasOwn(failpoints, values.sabotage))
  throw new Error(`There is no failpoint ${values.sabotage}: ${Object.keys(failpoints).join(', ')}.`);
const say = (text: string): void => void process.stderr.write(`${text}\n`);
const random = randomOf(seed);

say(`Seed ${seed}: the same faults at about the same moments.`);
const world = await startWorld({ random, failpoints: values.sabotage, say });
let ok = false;
try {
  const load = startLoad(world.shopUrls, rate, 40, random);
  const flips = startFlips(world, random, say);
  const faults = startFaults(world, random, seconds, say);
  await delay(seconds * 1_000);
  await faults.stop();
  say('The faults end. Everything goes to events, one switchover to done.');
  const last = await flips.finish();
  await delay(5_000);
  await load.stop();
  let stuck: string | undefined;
  await waitFor(
    async () => {
      await world.fleet.tend();
      return isSettled(world.shop, world.pools);
    },
    { what: 'everything to come to rest', deadlineMs: values.sabotage === undefined ? 120_000 : 45_000, everyMs: 500 },
  ).catch((error: unknown) => (stuck = String(error)));

  const audits = await audit(world.shop, world.pools);
  const inside = await insideCounts(world.pools);
  const toEffect = await flipsToEffect(world.shop, world.pools);
  const sum = (field: 'lost' | 'doubled' | 'outOfOrder'): number =>
    Object.values(audits).reduce((total, each) => total + each[field], 0);
  const wrong = { lost: sum('lost'), doubled: sum('doubled'), outOfOrder: sum('outOfOrder') };
  const network = world.networkCounts();
  const happened = {
    flips: flips.counts.changes,
    rollbacks: flips.counts.rollbacks,
    redrives: flips.counts.redrives,
    early: network.early + flips.heldEarly.size,
    425: network.early,
    409: network.running,
    redriven: network.repeatedCalls,
    duplicates: network.duplicates,
    rebalances: inside.rebalances,
    ...faults.counts,
    requestsLost: network.requestsLost,
    answersLost: network.answersLost,
    answersLate: network.answersLate,
    requestsDoubled: network.requestsDoubled,
    foreignAnswers: network.foreignAnswers,
  };
  const missing = Object.entries(happened).flatMap(([kind, count]) => (count === 0 ? [kind] : []));
  const sound =
    Object.values(wrong).every((count) => count === 0) &&
    stuck === undefined &&
    inside.alarms.length === 0 &&
    inside.parked === 0 &&
    world.fleet.ended.length === 0;
  ok = sound && (missing.length === 0 || values.sabotage !== undefined) && load.counts.placed > 0;
  const result = {
    ok,
    seed,
    seconds,
    orders: load.counts.placed,
    requests: load.counts,
    ...wrong,
    services: audits,
    happened,
    ...(missing.length === 0 ? {} : { neverHappened: missing }),
    flipToEffectMs: { p50: Math.round(toEffect[toEffect.length >> 1] ?? 0), slowest: Math.round(toEffect.at(-1) ?? 0) },
    done: last,
    parked: inside.parked,
    alarms: inside.alarms.slice(0, 10),
    ended: world.fleet.ended,
    ...(stuck === undefined ? {} : { stuck }),
  };
  for (const [name, each] of Object.entries(audits))
    say(
      `${name}: ${each.applied} applied (${each.byRpc} by call, ${each.byEvent} by event), lost ${each.lost}, doubled ${each.doubled}, out of order ${each.outOfOrder} ${each.examples.slice(0, 3).join('; ')}`,
    );
  say(JSON.stringify(happened));
  if (missing.length > 0) say(`Never happened: ${missing.join(', ')}`);
  if (stuck !== undefined) say(stuck);
  for (const alarm of [...inside.alarms.slice(0, 5), ...world.fleet.ended.slice(0, 5)]) say(alarm);
  if (values.json === true) process.stdout.write(`${JSON.stringify(result)}\n`);
} finally {
  if (!ok) say(`Logs of all processes: ${writeLogs()}`);
  await world.stop();
}
process.exitCode = ok ? 0 : 1;

function writeLogs(): string {
  const folder = join(tmpdir(), 'turnout-logs', `chaos-${seed}-${process.pid}`);
  mkdirSync(folder, { recursive: true });
  for (const [index, { name, output }] of world.fleet.outputs().entries())
    writeFileSync(
      join(folder, `${String(index).padStart(3, '0')}-${name.replaceAll(/[^a-z0-9]+/gi, '-')}.log`),
      output,
    );
  return folder;
}
