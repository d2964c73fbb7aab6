import express from 'express';
import type { Express } from 'express';
import type { Pool } from 'pg';
import { compareWith, createEndpoint } from 'turnout';
import { switchedOver } from 'turnout/express';
import { pgDatabase } from 'turnout/pg';
import { isShop } from '../authenticate.ts';
import { emailConsumer } from './consumers.ts';
import type { Mailbox } from './mailbox.ts';

/** The old endpoint; `switchedOver` is what was added to it. */
export function emailApp(pool: Pool, mailbox: Mailbox, release: string): Express {
  const endpoint = createEndpoint({
    consumer: 'email',
    database: pgDatabase(pool),
    order: 'none',
    authenticate: isShop,
    // In stage shadow: what the event handler would have mailed, beside what was mailed.
    shadow: compareWith(emailConsumer(pool, mailbox, release), {
      pure: true,
      release,
      // The text holds nothing about the customer, so the report may show it.
      show: ['writes.mail.*.insert.text'],
      // More than the defaults (200 ms, 2): the demo runs everything on one machine, and has little time.
      timeoutMs: 2_000,
      concurrency: 8,
    }),
  });
  const app = express();
  app.use(express.json());
  app.post('/confirmations', switchedOver(endpoint), async (request, response) => {
    response.status(201).json(await mailbox.confirm(request.body));
  });
  return app;
}
