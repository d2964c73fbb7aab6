// The real thing: PostgreSQL, Apache Kafka, and every part of the example in a process of its own.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Kafka, logLevel } from 'kafkajs';
import type { Pool } from 'pg';
import {
  createDatabase,
  freePort,
  spawnNode,
  startKafka,
  startPostgres,
  uniqueName,
} from '../../../test/support/index.ts';
import type { Database, Kafka as KafkaPart, NodeProcess, Postgres } from '../../../test/support/index.ts';
import type { ShadowReport } from 'turnout';
import { OrderPlaced } from '../events.ts';
import { openAlertReceiver } from './alert-receiver.ts';
import { countRecords } from './count-records.ts';
import { openWire } from './wire.ts';
import type { Wire } from './wire.ts';
import { calledServices, consumers, placeOneYourself, placesToLook, switchArguments, switchoverOf } from './world.ts';
import type { CalledService, Consumer, Refusal, World } from './world.ts';

const example = (path: string): string => fileURLToPath(new URL(`../${path}`, import.meta.url));
const turnoutCommand = fileURLToPath(new URL('../../../src/cli/main.ts', import.meta.url));

const topic = OrderPlaced.topic.name;

type Owner = 'shop' | Consumer;
const owners: readonly Owner[] = ['shop', ...consumers];

/** Everything that has to be ended, in the order in which it came to be. */
interface Things {
  readonly processes: Map<string, NodeProcess>;
  readonly finished: { readonly name: string; readonly output: string }[];
  readonly wires: { close(): Promise<void> }[];
  readonly databases: Database[];
  readonly parts: (Postgres | KafkaPart)[];
  /** Takes out of a cluster that isn't ours what the demo has put into it. */
  leave?: () => Promise<unknown>;
}

/** Starts it all; if that fails, ends what was started. Rejects with PartMissingError if there is no Kafka to be had. */
export async function startProcesses(
  progress: (text: string) => void,
  signal: AbortSignal,
  { guarded }: { readonly guarded: boolean },
): Promise<World> {
  const things: Things = { processes: new Map(), finished: [], wires: [], databases: [], parts: [] };
  try {
    return await start(things, progress, signal, guarded);
  } catch (error) {
    const logs = await stopAll(things, !signal.aborted && things.processes.size + things.finished.length > 0);
    if (logs !== undefined) process.stderr.write(`Logs of all processes: ${logs}\n`);
    throw error;
  }
}

async function start(
  things: Things,
  progress: (text: string) => void,
  signal: AbortSignal,
  guarded: boolean,
): Promise<World> {
  const keep = <Part extends Postgres | KafkaPart>(part: Part): Part => {
    things.parts.push(part);
    return part;
  };
  const starting = [
    startPostgres({ onProgress: progress }).then(keep),
    startKafka({ onProgress: progress }).then(keep),
  ] as const;
  // Both have settled before anything is cleaned up.
  await Promise.allSettled(starting);
  const [postgres, kafka] = await Promise.all(starting);
  signal.throwIfAborted();

  const client = new Kafka({ clientId: uniqueName('demo'), brokers: [...kafka.brokers], logLevel: logLevel.NOTHING });
  if (kafka.source === 'environment') things.leave = await borrow(client);

  progress('Creating five databases');
  const databases = {} as Record<Owner, Database>;
  for (const owner of owners) {
    databases[owner] = await createDatabase(postgres);
    things.databases.push(databases[owner]);
  }
  const pools = Object.fromEntries(owners.map((owner) => [owner, databases[owner].pool({ max: 3 })])) as Record<
    Owner,
    Pool
  >;
  for (const owner of owners) await pools[owner].query(readFileSync(example(`${owner}/schema.sql`), 'utf8'));

  const ports = {} as Record<CalledService, number>;
  const wires = {} as Record<CalledService, Wire>;
  for (const service of calledServices) {
    ports[service] = await freePort();
    wires[service] = await openWire(ports[service]);
    things.wires.push(wires[service]);
  }
  const receiver = await openAlertReceiver();
  things.wires.push(receiver);
  const addresses = {
    EMAIL_URL: wires.email.url,
    FULFILMENT_URL: wires.fulfilment.url,
    LOYALTY_URL: wires.loyalty.url,
    EMAIL_DATABASE_URL: databases.email.url,
    FULFILMENT_DATABASE_URL: databases.fulfilment.url,
    LOYALTY_DATABASE_URL: databases.loyalty.url,
    ALERTS_URL: receiver.url,
    GUARDRAILS: guarded ? 'on' : 'off',
  };
  /** What is deployed of each. */
  const releases: Partial<Record<Owner, string>> = { email: '1', loyalty: '1' };
  const environmentOf = (owner: Owner): Record<string, string> => ({
    DATABASE_URL: databases[owner].url,
    KAFKA_BROKERS: kafka.brokers.join(','),
    RELEASE: releases[owner] ?? '',
    ...(owner === 'shop' ? addresses : {}),
  });

  /** A process that stays: ready when it has said so. */
  async function launch(
    name: string,
    file: string,
    args: readonly string[],
    env: Record<string, string>,
    ready: RegExp,
  ): Promise<RegExpExecArray> {
    signal.throwIfAborted();
    const started = spawnNode(file, args, env);
    things.processes.set(name, started);
    return started.line(ready, { deadlineMs: 60_000 });
  }
  /** A command that ends by itself; gives its JSON. */
  async function ask<Data>(owner: Owner, ...args: string[]): Promise<Answer<Data>> {
    signal.throwIfAborted();
    const command = spawnNode(
      turnoutCommand,
      [...args, '--json', '--config', example(`${owner}/turnout.config.ts`)],
      environmentOf(owner),
    );
    await command.exited;
    things.finished.push({ name: `turnout ${args.join(' ')} (${owner})`, output: command.output });
    const line = command.output.split('\n').findLast((each) => each.startsWith('{"ok":'));
    if (line === undefined) throw new Error(`turnout ${args.join(' ')} (${owner}) gave nothing:\n${command.output}`);
    return JSON.parse(line) as Answer<Data>;
  }
  async function turnout<Data>(owner: Owner, ...args: string[]): Promise<Data> {
    const answer = await ask<Data>(owner, ...args);
    if (answer.ok) return answer;
    throw new Error(`turnout ${args.join(' ')} (${owner}) failed: ${JSON.stringify(answer.error)}`);
  }
  async function kill(name: string, how: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const running = things.processes.get(name);
    if (running === undefined) throw new Error(`${name} does not run.`);
    things.processes.delete(name);
    // It may finish what it has begun, but not for ever.
    const patience = setTimeout(() => running.signal('SIGKILL'), 10_000);
    await running.kill(how);
    clearTimeout(patience);
    things.finished.push({ name, output: running.output });
  }
  const serveApp = (owner: 'shop' | CalledService, port: number): Promise<unknown> =>
    launch(
      owner,
      example(`${owner}/main.ts`),
      [],
      { ...environmentOf(owner), PORT: String(port) },
      /listening on (\d+)/,
    );
  const consume = (consumer: Consumer): Promise<unknown> =>
    launch(
      `turnout consume ${consumer}`,
      turnoutCommand,
      ['consume', consumer, '--config', example(`${consumer}/turnout.config.ts`)],
      environmentOf(consumer),
      /: ready$/,
    );
  const relay = (number: number): Promise<unknown> =>
    launch(
      `turnout run ${number}`,
      turnoutCommand,
      ['run', '--config', example('shop/turnout.config.ts')],
      environmentOf('shop'),
      /: ready$/,
    );

  progress('$ turnout migrate, for each of the five');
  await Promise.all(owners.map((owner) => turnout(owner, 'migrate')));
  progress('$ turnout topics apply');
  await turnout('shop', 'topics', 'apply');
  progress(`$ turnout switch <name> rpc, for ${Object.values(switchoverOf).join(', ')}`);
  await Promise.all(calledServices.map((service) => turnout('shop', 'switch', switchoverOf[service], 'rpc')));
  progress('Starting e-mail, fulfilment, loyalty, their consumers, two relays and the shop');
  await Promise.all([relay(1), relay(2), ...calledServices.map((service) => serveApp(service, ports[service]))]);
  // Fulfilment consumes in the process that serves HTTP.
  await Promise.all([consume('email'), consume('loyalty')]);
  const shopPort = await freePort();
  await serveApp('shop', shopPort);

  return {
    parts: `PostgreSQL ${postgres.version} (${postgres.source}), Apache Kafka ${kafka.version} (${kafka.source}), ${things.processes.size} processes of Node ${process.version}`,
    broker: { name: kafka.name, version: kafka.version },
    shopUrl: `http://127.0.0.1:${shopPort}`,
    shop: pools.shop,
    databases: pools,
    wires,
    kills: true,
    skips: [],
    alerts: receiver.alerts,
    switchTo: async (service, request) =>
      refusalOf(await ask('shop', 'switch', switchoverOf[service], ...switchArguments(request))),
    watchMail: () => turnout('email', 'shadow', 'watch', 'mail'),
    shadowReport: () => turnout<ShadowReport>('shop', 'shadow', 'report', switchoverOf.email),
    async deployEmail(release) {
      releases.email = release;
      await Promise.all([kill('email', 'SIGTERM'), kill('turnout consume email', 'SIGTERM')]);
      await Promise.all([serveApp('email', ports.email), consume('email')]);
    },
    killEmail: () => kill('email'),
    startEmail: async () => void (await serveApp('email', ports.email)),
    killLoyaltyConsumer: () => kill('turnout consume loyalty'),
    startLoyaltyConsumer: async () => void (await consume('loyalty')),
    async deployLoyaltyConsumer(release) {
      releases.loyalty = release;
      await kill('turnout consume loyalty', 'SIGTERM');
      await consume('loyalty');
    },
    cleanUpEmail: async () =>
      cleanupLines(
        await turnout<Cleanup>('shop', 'switch', 'cleanup', switchoverOf.email, '--source-folder', example('.')),
      ),
    startAnalytics: async () => void (await consume('analytics')),
    async killLeadingRelay() {
      const { rows } = await pools.shop.query<{ relay: string }>(
        'select t.relay from turnout.relay_tick t order by t.shard, t.tick desc limit 1',
      );
      // A relay's name holds the id of its process.
      const leader = [...things.processes].find(
        ([name, { pid }]) => name.startsWith('turnout run') && rows[0]?.relay.includes(`-${pid}-`),
      );
      if (leader === undefined) throw new Error(`No process leads by the name of ${rows[0]?.relay}.`);
      await kill(leader[0]);
    },
    countTopic: () => countRecords(client, topic),
    links: [
      ...placesToLook((owner) => databases[owner].url),
      `# Kafka: ${kafka.brokers.join(',')}, topic ${topic}`,
      placeOneYourself(`http://127.0.0.1:${shopPort}`),
      ...calledServices.map(
        (service) => `${service}: http://127.0.0.1:${ports[service]} (behind ${wires[service].url})`,
      ),
    ],
    stop: ({ keepLogs }) => stopAll(things, keepLogs),
  };
}

type Answer<Data> =
  | ({ readonly ok: true } & Data)
  | {
      readonly ok: false;
      readonly error: { readonly code: string; readonly details?: Partial<Pick<Refusal, 'findings'>> };
    };

/** A refusal is part of the story; any other error ends it. */
function refusalOf(answer: Answer<unknown>): Refusal | undefined {
  if (answer.ok) return undefined;
  const { code, details } = answer.error;
  if (code !== 'TURNOUT_CHECKS_NOT_READY') throw new Error(`turnout switch failed: ${JSON.stringify(answer.error)}`);
  return { code, findings: (details?.findings ?? []).filter(({ verdict }) => verdict !== 'ready') };
}

/** What `turnout switch cleanup --json` gives, as far as it is shown. */
interface Cleanup {
  readonly code: readonly { readonly path: string; readonly line: number; readonly kind: string }[];
  readonly endpoints: readonly { readonly endpoint: string; readonly unused: boolean }[];
}

function cleanupLines({ code, endpoints }: Cleanup): string[] {
  return [
    ...code.slice(0, 6).map(({ path, line, kind }) => `${path}:${line}  ${kind}`),
    ...(code.length > 6 ? [`… and ${code.length - 6} more`] : []),
    ...endpoints.map(
      ({ endpoint, unused }) => `${endpoint}: ${unused ? 'nobody calls it without Turnout' : 'is still called'}`,
    ),
  ];
}

/** Ends everything, the newest first. Whatever fails, the rest is still ended; the watchdog has the last word. */
async function stopAll(things: Things, keepLogs: boolean): Promise<string | undefined> {
  await Promise.all(
    [...things.processes.values()].map(async (running) => {
      const patience = setTimeout(() => running.signal('SIGKILL'), 5_000);
      await running.kill('SIGTERM');
      clearTimeout(patience);
    }),
  );
  await things.leave?.().catch((error: unknown) => process.stderr.write(`${String(error)}\n`));
  await Promise.allSettled(things.wires.map((wire) => wire.close()));
  await Promise.allSettled(things.databases.map((database) => database.drop()));
  await Promise.allSettled(things.parts.map((part) => part.stop({ keepLogs })));
  return keepLogs ? writeLogs(things) : undefined;
}

/** Makes sure that a cluster of somebody else's holds nothing by our names. Gives what leaves it as it was. */
async function borrow(client: Kafka): Promise<() => Promise<unknown>> {
  const admin = client.admin();
  await admin.connect();
  try {
    if ((await admin.listTopics()).includes(topic)) {
      throw new Error(
        `The Kafka of TURNOUT_KAFKA_BROKERS has a topic ${topic}; the demo would mix its events with it. Name another cluster, or none.`,
      );
    }
  } finally {
    await admin.disconnect();
  }
  return async () => {
    await admin.connect();
    try {
      await admin.deleteGroups([...consumers]);
      await admin.deleteTopics({ topics: [topic] });
    } finally {
      await admin.disconnect();
    }
  };
}

function writeLogs(things: Things): string {
  const folder = join(tmpdir(), 'turnout-logs', uniqueName('demo'));
  mkdirSync(folder, { recursive: true });
  const all = [...things.finished, ...[...things.processes].map(([name, { output }]) => ({ name, output }))];
  for (const [index, { name, output }] of all.entries()) {
    writeFileSync(
      join(folder, `${String(index).padStart(2, '0')}-${name.replaceAll(/[^a-z0-9]+/gi, '-')}.log`),
      output,
    );
  }
  return folder;
}
