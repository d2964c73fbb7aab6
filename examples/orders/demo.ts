// npm run demo [-- --json] [-- --keep] [-- --orders 2000] [-- --unguarded]
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { PartMissingError } from '../../test/support/index.ts';
import {
  audit,
  automaticStepBacks,
  confirmed,
  countTakeovers,
  countWrongMails,
  stagesGoneThrough,
} from './demo/audit.ts';
import type { Audit } from './demo/audit.ts';
import { startLoad } from './demo/load.ts';
import { startInOneProcess } from './demo/one-process.ts';
import { startProcesses } from './demo/processes.ts';
import { tellStory } from './demo/story.ts';
import type { Told } from './demo/story.ts';
import { liveView, plainView } from './demo/view.ts';
import type { View } from './demo/view.ts';
import { watch } from './demo/watch.ts';
import type { Watch } from './demo/watch.ts';
import { calledServices, consumers, switchoverOf } from './demo/world.ts';
import type { World } from './demo/world.ts';

const { values: options } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    keep: { type: 'boolean', default: false },
    orders: { type: 'string', default: '2000' },
    rate: { type: 'string', default: '25' },
    // Without guardrails nothing steps back by itself: the demo must say so, and fail.
    unguarded: { type: 'boolean', default: false },
  },
});

const interrupt = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.on(signal, () => interrupt.abort(new Error(`Stopped by ${signal}.`)));

const view: View = options.json
  ? plainView((text) => void process.stderr.write(text))
  : process.stdout.isTTY
    ? liveView(process.stdout)
    : plainView((text) => void process.stdout.write(text));

process.exitCode = await main();

async function main(): Promise<number> {
  let world: World | undefined;
  let ok = false;
  try {
    view.title('Turnout: an order monolith and its three services, on real parts. Starting them …');
    world = await startWorld();
    const result = await play(world);
    ok = result.ok;
    report(world, result);
    if (options.keep && !interrupt.signal.aborted) await untilInterrupted();
  } catch (error) {
    view.close();
    process.stderr.write(
      `\n${interrupt.signal.aborted ? 'Stopped.' : error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`,
    );
    if (options.json) process.stdout.write(`${JSON.stringify({ ok: false, error: String(error) })}\n`);
  } finally {
    const logs = await world?.stop({ keepLogs: !ok && !interrupt.signal.aborted });
    if (logs !== undefined) process.stderr.write(`Logs of all processes: ${logs}\n`);
  }
  return ok ? 0 : interrupt.signal.aborted ? 130 : 1;
}

async function startWorld(): Promise<World> {
  const progress = (text: string): void => view.say(text);
  try {
    return await startProcesses(progress, interrupt.signal, { guarded: !options.unguarded });
  } catch (error) {
    if (!(error instanceof PartMissingError)) throw error;
    view.say(error.message);
    view.say('So everything runs in this one process, on an in-memory broker.');
    return startInOneProcess(progress, { guarded: !options.unguarded });
  }
}

interface Result {
  readonly ok: boolean;
  readonly broker: World['broker'];
  readonly orders: number;
  readonly events: number;
  readonly consumers: Readonly<Record<string, Audit>>;
  readonly lost: number;
  readonly doubled: number;
  readonly outOfOrder: number;
  readonly redriven: number;
  readonly duplicatesDropped: number;
  readonly early: number;
  readonly takeovers: number;
  /** Each switchover's, the first one first. */
  readonly stages: Readonly<Record<string, readonly string[]>>;
  readonly shadow: Told['shadow'];
  /** Mails that a customer got with the wrong sum. */
  readonly wrongMails: number;
  readonly guardrail: { readonly automaticStepBacks: number; readonly alerts: number };
  readonly faults: Readonly<Record<string, number>>;
  readonly requests: { readonly answered: number; readonly failed: number; readonly firstFailure: string | undefined };
  readonly skipped: readonly string[];
}

async function play(running: World): Promise<Result> {
  view.say(running.parts);
  for (const skipped of running.skips) view.say(`Skipped: ${skipped}`);
  const watching = watch(running, (standing) => view.standing(standing));
  const load = startLoad(running.shopUrl, Number(options.rate), Number(options.orders));
  try {
    const told = await tellStory({
      world: running,
      load,
      view,
      watch: watching,
      signal: interrupt.signal,
      orders: Number(options.orders),
    });
    return await judge(running, told, watching, load.counts, load.firstFailure);
  } finally {
    await Promise.all([load.stop(), watching.stop()]);
    view.close();
  }
}

/** Where each number comes from is told in README.md; none is a counter of Turnout's. */
async function judge(
  running: World,
  told: Told,
  watching: Watch,
  sent: { placed: number; changed: number; cancelled: number; failed: number },
  firstFailure: string | undefined,
): Promise<Result> {
  const [{ rows }, audits, topic, takeovers, redriven, stages, wrongMails, stepBacks] = await Promise.all([
    running.shop.query<{ orders: number; events: number }>(
      'select count(*)::int as orders, coalesce(sum(version), 0)::int as events from "order"',
    ),
    audit(running),
    running.countTopic(),
    countTakeovers(running.shop),
    confirmed(running.databases.email, told.owedDuringOutage),
    stagesGoneThrough(running.shop),
    countWrongMails(running.databases.email),
    automaticStepBacks(running.shop),
  ]);
  const { orders, events } = rows[0] ?? { orders: 0, events: 0 };
  const total = (field: 'lost' | 'doubled' | 'outOfOrder'): number =>
    consumers.reduce((sum, consumer) => sum + audits[consumer][field], 0);
  const onWires = (field: 'requestsLost' | 'answersLost' | 'duplicates' | 'early'): number =>
    calledServices.reduce((sum, service) => sum + running.wires[service].counts[field], 0);
  const happened = {
    redriven,
    duplicatesDropped: onWires('duplicates') + (topic.records - topic.distinct),
    early: onWires('early') + watching.heldEarly.size,
    takeovers,
  };
  const wrong = { lost: total('lost'), doubled: total('doubled'), outOfOrder: total('outOfOrder') };
  const guardrail = {
    automaticStepBacks: stepBacks.length,
    alerts: running.alerts.filter(({ kind }) => kind === 'stepped-back').length,
  };
  const { mismatches, groups, promotionRefused, cleanAfterRepair } = told.shadow;
  const foundInTime = mismatches >= 1 && groups >= 1 && promotionRefused && cleanAfterRepair && wrongMails === 0;
  const steppedBack = guardrail.automaticStepBacks >= 1 && guardrail.alerts >= 1;
  const went = stages[switchoverOf.email] ?? [];
  // None of them was forced, or it would say so.
  const allStages = ['rpc', 'shadow', 'ramp 10 %', 'ramp 50 %', 'event', 'done'].every((each) => went.includes(each));
  const proven = running.skips.length > 0 || Object.values(happened).every((count) => count >= 1);
  return {
    ok:
      Object.values(wrong).every((count) => count === 0) &&
      proven &&
      foundInTime &&
      steppedBack &&
      allStages &&
      orders >= Number(options.orders) &&
      sent.failed === 0 &&
      topic.distinct === events,
    broker: running.broker,
    orders,
    events,
    consumers: audits,
    ...wrong,
    ...happened,
    stages,
    shadow: told.shadow,
    wrongMails,
    guardrail,
    faults: { ...told.faults, requestsLost: onWires('requestsLost'), answersLost: onWires('answersLost') },
    requests: { answered: sent.placed + sent.changed + sent.cancelled, failed: sent.failed, firstFailure },
    skipped: running.skips,
  };
}

function report(running: World, result: Result): void {
  const rows = consumers.map((consumer) => {
    const { applied, lost, doubled, outOfOrder } = audits(result, consumer);
    return `${consumer.padEnd(12)} ${[applied, lost, doubled, outOfOrder].map((count) => String(count).padStart(12)).join(' ')}`;
  });
  const file = join(mkdtempSync(join(tmpdir(), 'turnout-demo-')), 'report.json');
  writeFileSync(file, `${JSON.stringify(result, undefined, 2)}\n`);
  view.result(
    [
      `${result.orders} orders, ${result.events} events, ${result.requests.failed} requests failed. From the services' own databases against the orders table:`,
      '',
      `${'service'.padEnd(12)} ${['applied', 'lost', 'doubled', 'out of order'].map((word) => word.padStart(12)).join(' ')}`,
      ...rows,
      '',
      `calls made again after the outage ${result.redriven}, duplicates dropped ${result.duplicatesDropped}, early ${result.early}, takeovers ${result.takeovers}`,
      `shadow found ${result.shadow.mismatches} wrong mails (${result.shadow.groups} kind) before any was sent: ${result.wrongMails} were`,
      `guardrails stepped back ${result.guardrail.automaticStepBacks} time(s) by themselves, ${result.guardrail.alerts} alerts`,
      ...Object.entries(result.stages).map(([name, stages]) => `${name}: ${stages.join(' → ')}`),
      `faults: ${Object.entries(result.faults)
        .map(([kind, count]) => `${kind} ${count}`)
        .join(', ')}`,
      '',
      result.ok ? 'Nothing lost, nothing doubled, nothing out of order.' : 'NOT as promised; see above.',
      '',
      `Report: ${file}`,
      ...(options.keep
        ? ['Everything still runs. Look around, then press Ctrl-C:', ...running.links.map((link) => `  ${link}`)]
        : ['To look around in what happened: npm run demo -- --keep']),
    ].join('\n'),
  );
  if (options.json) process.stdout.write(`${JSON.stringify(result)}\n`);
}

function audits(result: Result, consumer: string): Audit {
  return result.consumers[consumer] ?? { applied: 0, lost: 0, doubled: 0, outOfOrder: 0 };
}

function untilInterrupted(): Promise<void> {
  return new Promise((resolve) => interrupt.signal.addEventListener('abort', () => resolve(), { once: true }));
}
