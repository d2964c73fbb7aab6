import express from 'express';
import type { Express } from 'express';
import type { Pool } from 'pg';
import { createEndpoint } from 'turnout';
import { switchedOver } from 'turnout/express';
import { pgDatabase } from 'turnout/pg';
import { isShop } from '../authenticate.ts';
import type { Mailbox } from './mailbox.ts';

/** The old endpoint; `switchedOver` is what was added to it. */
export function emailApp(pool: Pool, mailbox: Mailbox): Express {
  const endpoint = createEndpoint({
    consumer: 'email',
    database: pgDatabase(pool),
    order: 'none',
    authenticate: isShop,
  });
  const app = express();
  app.use(express.json());
  app.post('/confirmations', switchedOver(endpoint), async (request, response) => {
    response.status(201).json(await mailbox.confirm(request.body));
  });
  return app;
}
