// All that is new around the old code: a capture, a bridge, a proxy, and the switchovers that join them.
import express from 'express';
import type { Express } from 'express';
import type { Pool } from 'pg';
import {
  createCapture,
  createTurnout,
  defineBridge,
  defineConsumer,
  defineProxy,
  defineSwitchover,
  on,
  proxyRoute,
} from 'turnout';
import { switchedOver } from 'turnout/express';
import type { RpcCall } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import { pgDatabase } from 'turnout/pg';
import { OrderPlaced, ParcelScanned } from './events.ts';
import { placeOrder } from './legacy/shop.ts';

/** The call that the shop used to make by itself, for the stage `rpc` and for the bridge alike. */
const notifyAt = (url: string) =>
  on(OrderPlaced, (event, call: RpcCall) =>
    rpcFetch(call, `${url}/notifications`, { json: { orderId: event.data.orderId } }),
  );

/** From calls of an endpoint that nobody can change to a bridge that calls it. */
export const notifications = (url: string) =>
  defineSwitchover({
    name: 'notifications',
    consumer: 'notifier',
    order: 'none',
    endpoint: 'bridged',
    rpc: [notifyAt(url)],
  });

export const notifierBridge = (pool: Pool, url: string) =>
  defineBridge(pgDatabase(pool), {
    name: 'notifier',
    order: 'none',
    from: 'beginning',
    // What the old service can take.
    rateLimit: { perSecond: 100, burst: 10 },
    calls: [notifyAt(url)],
  });

/** Step 1. `joined` is the pool of the old code. One line more on the route, and each order is an event, in the same transaction. */
export function shopApp(joined: Pool, notifyUrl: string): { app: Express; close: () => Promise<void> } {
  const turnout = createTurnout({
    source: 'shop',
    database: pgDatabase(joined),
    switchovers: [notifications(notifyUrl)],
  });
  const capture = createCapture(turnout, {
    event: OrderPlaced,
    data: ({ body }, answer) => ({
      orderId: (answer.json() as { id: string }).id,
      item: (body as { item: string }).item,
    }),
  });
  const app = express();
  app.post('/orders', express.json(), switchedOver(capture), placeOrder(joined));
  return { app, close: () => turnout.close() };
}

/** From the old parcels API to the new tracking service, without the scanners' noticing. */
export const tracking = (url: string) =>
  defineSwitchover({
    name: 'tracking',
    consumer: 'tracker',
    order: 'none',
    endpoint: 'bridged',
    rpc: [on(ParcelScanned, (event, call) => rpcFetch(call, `${url}/parcels`, { json: event.data }))],
  });

/** The new service: a consumer like any other. */
export const tracker = (pool: Pool) =>
  defineConsumer(pgDatabase(pool), {
    name: 'tracker',
    from: 'beginning',
    inSwitchover: [ParcelScanned],
    handlers: [
      on(ParcelScanned, async (event, { tx }) => {
        await tx.query('insert into tracked (parcel_id) values ($1)', [event.data.parcelId]);
      }),
    ],
  });

/** Step 3. What the scanners' name in the DNS points at now. */
export function scannerProxy(pool: Pool, parcelsUrl: string) {
  const database = pgDatabase(pool);
  const switchover = tracking(parcelsUrl);
  return defineProxy({
    name: 'scanners',
    source: 'scans',
    turnout: createTurnout({ source: 'scans', database, switchovers: [switchover] }),
    database,
    listen: { host: '127.0.0.1', port: 0 },
    target: parcelsUrl,
    routes: [
      proxyRoute(ParcelScanned, {
        method: 'POST',
        path: '/parcels',
        switchover,
        idempotencyHeader: 'x-scan-id',
        data: ({ body }) => body as { parcelId: string },
        // What the scanners take for success.
        answer: ({ key }) => ({ status: 200, body: { booked: key } }),
      }),
    ],
  });
}
