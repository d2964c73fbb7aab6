import express from 'express';
import type { Express } from 'express';
import type { Pool } from 'pg';
import { createEndpoint, drainHeld } from 'turnout';
import { switchedOver } from 'turnout/express';
import { pgDatabase } from 'turnout/pg';
import { isShop } from '../authenticate.ts';
import { loyaltyConsumer } from './consumers.ts';
import { creditOrder, revokeOrder } from './ledger.ts';

/** The old endpoints of the ledger; they answer with the new balance. */
export function loyaltyApp(pool: Pool, release: string): Express {
  const endpoint = createEndpoint({
    consumer: 'loyalty',
    database: pgDatabase(pool),
    order: 'key',
    authenticate: isShop,
    drain: drainHeld(loyaltyConsumer(pool, release)),
  });
  const app = express();
  app.use(express.json());
  app.post('/points', switchedOver(endpoint), async (request, response) => {
    response.json(await creditOrder(pool, request.body));
  });
  app.post('/points/remove', switchedOver(endpoint), async (request, response) => {
    response.json(await revokeOrder(pool, request.body));
  });
  return app;
}
