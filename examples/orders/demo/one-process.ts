// For a machine with neither Docker nor Java: the same example in one process, on the in-memory broker of turnout/testing.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import type { Express } from 'express';
import type { Pool } from 'pg';
import {
  applyTopics,
  checkSwitchover,
  consumerEvidence,
  createRelay,
  createTurnout,
  guardrails,
  isTurnoutError,
  migrate,
  outboxKeeper,
  recordSince,
  redrive,
  registerEvents,
  registerSwitchover,
  rpcSweeper,
  runConsumer,
  setStage,
  shadowReport,
  silentLogger,
  watchTable,
  webhook,
} from 'turnout';
import type { EvidenceQuestion, Finding, Service } from 'turnout';
import { joinPool, pgDatabase } from 'turnout/pg';
import { inMemoryBroker } from 'turnout/testing';
import { typeOrmDatabase } from 'turnout/typeorm';
import { createDatabase, freePort, startPostgres } from '../../../test/support/index.ts';
import type { Database } from '../../../test/support/index.ts';
import { analyticsConsumer } from '../analytics/consumers.ts';
import { emailApp } from '../email/app.ts';
import { emailConsumer } from '../email/consumers.ts';
import { mailboxOn } from '../email/mailbox.ts';
import { OrderCancelled, OrderChanged, OrderPlaced } from '../events.ts';
import { fulfilmentApp } from '../fulfilment/app.ts';
import { fulfilmentConsumer } from '../fulfilment/consumers.ts';
import { loyaltyApp } from '../loyalty/app.ts';
import { loyaltyConsumer } from '../loyalty/consumers.ts';
import { shopApp } from '../shop/app.ts';
import { connect } from '../shop/database.ts';
import { orderBook } from '../shop/orders.ts';
import { switchoversTo } from '../shop/switchovers.ts';
import { openAlertReceiver } from './alert-receiver.ts';
import { openWire } from './wire.ts';
import type { Wire } from './wire.ts';
import { calledServices, consumers, placeOneYourself, placesToLook, switchoverOf } from './world.ts';
import type { CalledService, Consumer, Refusal, World } from './world.ts';

type Owner = 'shop' | Consumer;
const owners: readonly Owner[] = ['shop', ...consumers];
const events = [OrderPlaced, OrderChanged, OrderCancelled];

export async function startInOneProcess(
  progress: (text: string) => void,
  { guarded }: { readonly guarded: boolean },
): Promise<World> {
  // The newest first, each by itself: whatever fails, the rest is still ended.
  const endings: (() => Promise<unknown>)[] = [];
  const stop = async (): Promise<undefined> => {
    for (const end of endings.reverse())
      await end().catch((error: unknown) => process.stderr.write(`${String(error)}\n`));
  };
  try {
    return await start(progress, endings, stop, guarded);
  } catch (error) {
    await stop();
    throw error;
  }
}

async function start(
  progress: (text: string) => void,
  endings: (() => Promise<unknown>)[],
  stop: () => Promise<undefined>,
  guarded: boolean,
): Promise<World> {
  const postgres = await startPostgres({ onProgress: progress });
  endings.push(() => postgres.stop());
  const databases = {} as Record<Owner, Database>;
  for (const owner of owners) {
    const database = await createDatabase(postgres);
    endings.push(() => database.drop());
    databases[owner] = database;
  }
  const looking = Object.fromEntries(owners.map((owner) => [owner, databases[owner].pool({ max: 3 })])) as Record<
    Owner,
    Pool
  >;
  const working = Object.fromEntries(
    owners.map((owner) => [owner, joinPool(databases[owner].pool({ max: 10 }))]),
  ) as Record<Owner, Pool>;
  for (const owner of owners) {
    await looking[owner].query(readFileSync(fileURLToPath(new URL(`../${owner}/schema.sql`, import.meta.url)), 'utf8'));
    await migrate(pgDatabase(looking[owner]), [owner === 'shop' ? 'producer' : 'consumer']);
  }

  const broker = inMemoryBroker();
  const shopData = await connect(databases.shop.url);
  endings.push(() => shopData.destroy());
  const shopDatabase = typeOrmDatabase(shopData);
  await registerEvents(shopDatabase, 'shop', events);
  await applyTopics(broker.topics(), events);

  const mailbox = mailboxOn(working.email);
  const releases = { email: '1', loyalty: '1' };
  const definitionOf = {
    email: () => emailConsumer(working.email, mailbox, releases.email),
    fulfilment: () => fulfilmentConsumer(working.fulfilment),
    loyalty: () => loyaltyConsumer(working.loyalty, releases.loyalty),
    analytics: () => analyticsConsumer(working.analytics),
  };
  const running = new Map<string, Service>();
  const begin = async (name: string, service: Service): Promise<void> => {
    await service.start();
    running.set(name, service);
  };
  const end = async (name: string): Promise<void> => {
    await running.get(name)?.stop();
    running.delete(name);
  };
  endings.push(() => Promise.all([...running.keys()].map(end)));
  const consume = (consumer: Consumer): Promise<void> =>
    begin(consumer, runConsumer(definitionOf[consumer](), { source: broker.source(), logger: silentLogger }));

  const appOf: Record<CalledService, () => Express> = {
    email: () => emailApp(working.email, mailbox, releases.email),
    fulfilment: () => fulfilmentApp(working.fulfilment),
    loyalty: () => loyaltyApp(working.loyalty, releases.loyalty),
  };
  const servers = new Map<string, Server>();
  const ports = {} as Record<CalledService, number>;
  const wires = {} as Record<CalledService, Wire>;
  for (const service of calledServices) {
    ports[service] = await freePort();
    wires[service] = await openWire(ports[service]);
    endings.push(() => wires[service].close());
  }
  const listen = async (name: string, app: Express, port: number): Promise<number> => {
    const server = createServer(app);
    await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve));
    servers.set(name, server);
    return (server.address() as AddressInfo).port;
  };
  const hangUp = async (name: string): Promise<void> => {
    const server = servers.get(name);
    servers.delete(name);
    await new Promise<void>((resolve) => {
      if (server === undefined) return resolve();
      server.close(() => resolve());
      server.closeAllConnections();
    });
  };
  endings.push(() => Promise.all([...servers.keys()].map(hangUp)));
  for (const service of calledServices) await listen(service, appOf[service](), ports[service]);

  const switchovers = switchoversTo(
    { email: wires.email.url, fulfilment: wires.fulfilment.url, loyalty: wires.loyalty.url },
    { guarded },
  );
  for (const service of calledServices) {
    await registerSwitchover(shopDatabase, 'shop', switchovers[service], 'the demo begins');
    // Nothing is published yet, so every partition starts at its beginning.
    await recordSince(shopDatabase, 'shop', switchoverOf[service], {
      [OrderPlaced.topic.name]: Array.from({ length: OrderPlaced.topic.partitions }, () => 0n),
    });
    await consume(service);
  }

  await begin('keeper', outboxKeeper({ database: shopDatabase, logger: silentLogger }));
  await begin(
    'sweeper',
    rpcSweeper({
      source: 'shop',
      database: shopDatabase,
      switchovers: Object.values(switchovers),
      logger: silentLogger,
    }),
  );
  const receiver = await openAlertReceiver();
  endings.push(() => receiver.close());
  const viewOf = (consumer: string) => ({
    broker: broker.source(),
    evidence: (question: EvidenceQuestion) =>
      consumerEvidence(pgDatabase(looking[consumer as Consumer]), consumer, question),
  });
  await begin(
    'guardrails',
    guardrails({
      source: 'shop',
      database: shopDatabase,
      switchovers: Object.values(switchovers),
      view: viewOf,
      onAlert: webhook(receiver.url),
      logger: silentLogger,
    }),
  );
  for (const name of ['relay 1', 'relay 2']) {
    await begin(name, createRelay({ database: shopDatabase, publisher: broker.publisher(), logger: silentLogger }));
  }
  const turnout = createTurnout({ source: 'shop', database: shopDatabase, switchovers: Object.values(switchovers) });
  endings.push(() => turnout.close());
  const shopPort = await listen('shop', shopApp(orderBook(turnout), switchovers), 0);

  return {
    parts: `PostgreSQL ${postgres.version} (${postgres.source}), in-memory broker, one process of Node ${process.version}`,
    broker: await broker.topics().identify(),
    shopUrl: `http://127.0.0.1:${shopPort}`,
    shop: looking.shop,
    databases: looking,
    wires,
    kills: false,
    skips: [
      'Apache Kafka: events go through the in-memory broker, which passes the same contract tests.',
      'Killing processes: there is only one, so services, consumer and relay are stopped instead.',
      'The command line: stages are set, checked and reported through the same functions that it calls; `turnout switch cleanup` is not shown.',
    ],
    alerts: receiver.alerts,
    async switchTo(service, { stage, redrive: again = false, ...request }) {
      const name = switchoverOf[service];
      if (stage !== 'rpc' && request.force !== true) {
        const { checks: rules } = switchovers[service];
        await checkSwitchover({
          source: 'shop',
          database: shopDatabase,
          name,
          target: stage,
          rules,
          ...viewOf(service),
        });
      }
      const refusal = await setStage(shopDatabase, 'shop', name, stage, request).then(() => undefined, refusalOf);
      if (again) await redrive(shopDatabase, 'shop', name);
      return refusal;
    },
    watchMail: () => watchTable(pgDatabase(looking.email), 'mail'),
    shadowReport: () => shadowReport(pgDatabase(looking.email), 'email'),
    async deployEmail(release) {
      releases.email = release;
      await Promise.all([hangUp('email'), end('email')]);
      await Promise.all([listen('email', appOf.email(), ports.email), consume('email')]);
    },
    killEmail: () => hangUp('email'),
    startEmail: async () => void (await listen('email', appOf.email(), ports.email)),
    killLoyaltyConsumer: () => end('loyalty'),
    startLoyaltyConsumer: () => consume('loyalty'),
    async deployLoyaltyConsumer(release) {
      releases.loyalty = release;
      await end('loyalty');
      await consume('loyalty');
    },
    cleanUpEmail: async () => undefined,
    startAnalytics: () => consume('analytics'),
    // The first one that was started leads.
    killLeadingRelay: () => end('relay 1'),
    async countTopic() {
      const ids = broker.messages(OrderPlaced.topic.name).map((message) => message.headers['ce_id']);
      return { records: ids.length, distinct: new Set(ids).size };
    },
    links: [...placesToLook((owner) => databases[owner].url), placeOneYourself(`http://127.0.0.1:${shopPort}`)],
    stop,
  };
}

/** A refusal is part of the story; any other error ends it. */
function refusalOf(error: unknown): Refusal {
  if (!isTurnoutError(error, 'TURNOUT_CHECKS_NOT_READY')) throw error;
  const findings = (error.details['findings'] ?? []) as readonly Finding[];
  return { code: error.code, findings: findings.filter(({ verdict }) => verdict !== 'ready') };
}
