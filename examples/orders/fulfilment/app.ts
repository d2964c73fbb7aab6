import express from 'express';
import type { Express } from 'express';
import type { Pool } from 'pg';
import { createEndpoint, drainHeld } from 'turnout';
import { switchedOver } from 'turnout/express';
import { pgDatabase } from 'turnout/pg';
import { isShop } from '../authenticate.ts';
import { fulfilmentConsumer } from './consumers.ts';
import { ship, stopShipping } from './warehouse.ts';

/** The old endpoints of the warehouse. */
export function fulfilmentApp(pool: Pool): Express {
  const endpoint = createEndpoint({
    consumer: 'fulfilment',
    database: pgDatabase(pool),
    order: 'key',
    authenticate: isShop,
    drain: drainHeld(fulfilmentConsumer(pool)),
  });
  const app = express();
  app.use(express.json());
  app.post('/shipments', switchedOver(endpoint), async (request, response) => {
    await ship(pool, request.body);
    response.status(204).end();
  });
  app.post('/shipments/stop', switchedOver(endpoint), async (request, response) => {
    await stopShipping(pool, request.body);
    response.status(204).end();
  });
  return app;
}
