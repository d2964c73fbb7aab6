// npm run example:wrap-legacy-api [-- --json]
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Express } from 'express';
import type { Pool } from 'pg';
import {
  applyTopics,
  createRelay,
  outboxKeeper,
  recordSince,
  registerEvents,
  registerSwitchover,
  rpcSweeper,
  runConsumer,
  runProxy,
  setStage,
  silentLogger as logger,
} from 'turnout';
import type { Service } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { joinPool, pgDatabase } from 'turnout/pg';
import { waitFor } from '../../test/support/index.ts';
import { startParts } from '../parts.ts';
import { OrderPlaced, ParcelScanned } from './events.ts';
import { scan } from './legacy/scanner.ts';
import { serveNotifications, serveParcels } from './legacy/services.ts';
import { notifications, notifierBridge, scannerProxy, shopApp, tracker, tracking } from './wrapped.ts';

const perStep = 30;
const began = performance.now();
const say = (text: string): void =>
  void process.stderr.write(`${((performance.now() - began) / 1000).toFixed(1)} s  ${text}\n`);

const result = await play().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  return { ok: false, error: String(error) };
});
if (process.argv.includes('--json')) process.stdout.write(`${JSON.stringify(result)}\n`);
else console.table(result);
process.exitCode = result.ok ? 0 : 1;

async function play(): Promise<Counted> {
  say('Starting PostgreSQL and Apache Kafka');
  const parts = await startParts();
  const endings: (() => unknown)[] = [() => parts.stop()];
  const begin = async (service: Service): Promise<void> => {
    await service.start();
    endings.push(() => service.stop());
  };
  try {
    // One database for what publishes, one for what consumes; the old services keep their own tables, here beside ours.
    const [publishing, consuming] = [parts.orders.pool({ max: 20 }), parts.mail.pool({ max: 12 })];
    const database = pgDatabase(publishing);
    await createTables(publishing, consuming);
    const [notify, parcels] = [await serveNotifications(consuming), await serveParcels(consuming)];
    endings.push(
      () => notify.close(),
      () => parcels.close(),
    );

    // What a deployment does once: `turnout topics apply`, `turnout switch <name> rpc`.
    const broker = kafkaJs(parts.kafka);
    await registerEvents(database, 'shop', [OrderPlaced]);
    await registerEvents(database, 'scans', [ParcelScanned]);
    await applyTopics(broker.topics(), [OrderPlaced, ParcelScanned]);
    const [notifying, trackingParcels] = [notifications(notify.url), tracking(parcels.url)];
    await registerSwitchover(database, 'shop', notifying, 'the example begins');
    await recordSince(database, 'shop', notifying.name, startOf(OrderPlaced.topic));
    await registerSwitchover(database, 'scans', trackingParcels, 'the example begins');
    await recordSince(database, 'scans', trackingParcels.name, startOf(ParcelScanned.topic));

    // `turnout run`, for both sources.
    await begin(outboxKeeper({ database, logger }));
    await begin(createRelay({ database, publisher: broker.publisher(), logger }));
    await begin(rpcSweeper({ source: 'shop', database, switchovers: [notifying], logger }));
    await begin(rpcSweeper({ source: 'scans', database, switchovers: [trackingParcels], logger }));

    const shop = shopApp(joinPool(publishing), notify.url);
    const shopUrl = await listen(shop.app, endings);
    endings.push(() => shop.close());

    let orders = 0;
    const placeOrders = async (): Promise<void> => {
      for (let each = 0; each < perStep; each++) {
        const answer = await post(`${shopUrl}/orders`, { item: `lamp ${each}` });
        if (answer === 201) orders++;
        // A refused one is none, and no event.
        if (each % 10 === 0 && (await post(`${shopUrl}/orders`, {})) !== 422)
          throw new Error('An order of nothing was taken.');
      }
    };
    say('Step 1, capture: orders of the old shop are events; the notifications are called for them');
    await placeOrders();

    say('Step 2, bridge: the notifications are called by a bridge');
    await begin(runConsumer(notifierBridge(consuming, notify.url), { source: broker.source(), logger }));
    const move = (source: string, name: string, stage: 'rpc' | 'event') =>
      // Forced: the checks want days of evidence, and this is a story of seconds.
      setStage(database, source, name, stage, { reason: 'the example moves', force: stage === 'event' });
    const during = placeOrders();
    await move('shop', notifying.name, 'event');
    await during;
    say('… and back again');
    const back = placeOrders();
    await move('shop', notifying.name, 'rpc');
    await back;

    say('Step 3, proxy: the scanners talk to a proxy, and half of their parcels go to the new tracking');
    const proxy = runProxy(scannerProxy(publishing, parcels.url), { logger });
    await begin(proxy);
    await begin(runConsumer(tracker(consuming), { source: broker.source(), logger }));
    const proxyUrl = `http://127.0.0.1:${proxy.address()!.port}`;
    let scans = 0;
    const scanParcels = async (): Promise<void> => {
      for (let each = 0; each < perStep; each++) {
        const status = await scan(proxyUrl, `parcel-${++scans}`, each % 5 === 0);
        if (status !== 200) throw new Error(`A scanner was told ${status}.`);
      }
    };
    await scanParcels();
    const scanning = scanParcels();
    await move('scans', trackingParcels.name, 'event');
    await scanning;
    if ((await fetch(`${proxyUrl}/health`)).status !== 200)
      throw new Error('The proxy does not pass other requests on.');

    say('Waiting for the last effects');
    let counted = await count(publishing, consuming, { orders, scans });
    await waitFor(
      async () => {
        counted = await count(publishing, consuming, { orders, scans });
        return counted.lost === 0 && counted.owed === 0;
      },
      { what: 'all effects', deadlineMs: 20_000 },
    ).catch((error: unknown) => say(String(error)));
    return counted;
  } finally {
    for (const end of endings.reverse()) await end();
  }
}

interface Counted {
  readonly ok: boolean;
  readonly orders: number;
  readonly orderEvents: number;
  readonly notifications: number;
  /** Of these, by the bridge. */
  readonly byBridge: number;
  readonly scans: number;
  readonly parcelEvents: number;
  readonly bookedByOldApi: number;
  readonly bookedByTracking: number;
  /** Orders without a notification, parcels that nobody booked. */
  readonly lost: number;
  /** Notifications and bookings beyond one each. */
  readonly doubled: number;
  /** Calls that are owed still. */
  readonly owed: number;
}

/** From the tables of the services alone, and from the outbox. */
async function count(publishing: Pool, consuming: Pool, sent: { orders: number; scans: number }): Promise<Counted> {
  const column = async (pool: Pool, sql: string): Promise<string[]> =>
    (await pool.query<{ value: string }>(sql)).rows.map(({ value }) => value);
  const orders = await column(publishing, 'select id::text as value from shop_order');
  const types = await column(publishing, 'select type as value from turnout.outbox');
  const owed = await column(publishing, 'select effect_key as value from turnout.rpc_delivery');
  const notified = await column(consuming, 'select order_id as value from notification');
  const byBridge = await column(consuming, `select effect_key as value from turnout.inbox where consumer = 'notifier'`);
  const old = await column(consuming, 'select parcel_id as value from parcel');
  const tracked = await column(consuming, 'select parcel_id as value from tracked');
  const [reached, booked] = [new Set(notified), new Set([...old, ...tracked])];
  const counts = {
    orders: orders.length,
    orderEvents: types.filter((type) => type === OrderPlaced.name).length,
    notifications: notified.length,
    byBridge: byBridge.length,
    scans: sent.scans,
    parcelEvents: types.filter((type) => type === ParcelScanned.name).length,
    bookedByOldApi: old.length,
    bookedByTracking: tracked.length,
    lost: orders.filter((id) => !reached.has(id)).length + sent.scans - booked.size,
    doubled: notified.length - reached.size + old.length + tracked.length - booked.size,
    owed: owed.length,
  };
  const ok =
    counts.lost + counts.doubled + counts.owed === 0 &&
    counts.orders === sent.orders &&
    counts.orderEvents === counts.orders &&
    counts.parcelEvents === counts.scans &&
    Math.min(counts.byBridge, counts.bookedByOldApi, counts.bookedByTracking, counts.notifications - counts.byBridge) >
      0;
  return { ok, ...counts };
}

async function createTables(publishing: Pool, consuming: Pool): Promise<void> {
  await publishing.query(
    'create table shop_order (id bigint generated always as identity primary key, item text not null)',
  );
  await consuming.query(`
    create table notification (order_id text not null);
    create table parcel (parcel_id text not null);
    create table tracked (parcel_id text not null)`);
}

function startOf(topic: { readonly name: string; readonly partitions: number }): Record<string, bigint[]> {
  return { [topic.name]: Array.from({ length: topic.partitions }, () => 0n) };
}

async function listen(app: Express, endings: (() => unknown)[]): Promise<string> {
  const server = await new Promise<Server>((resolve) => {
    const listening = app.listen(0, '127.0.0.1', () => resolve(listening));
  });
  endings.push(
    () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  );
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

async function post(url: string, body: unknown): Promise<number> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  await response.arrayBuffer();
  return response.status;
}
