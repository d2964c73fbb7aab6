// One instance of the shop. Argument: {url, port, urls}. POST /orders {customer} is one transaction: the customer's next step and its event. Now and
// then the transaction is rolled back after it has published. Writes `ready`.
import express from 'express';
import { Pool } from 'pg';
import { createTurnout, jsonLogger } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { OrderChanged, OrderPlaced, source, switchoversTo } from './services.ts';

const { url, port, urls } = JSON.parse(process.argv[2] ?? '{}') as {
  url: string;
  port: number;
  urls: Record<string, string>;
};
const pool = new Pool({ connectionString: url, max: 10, connectionTimeoutMillis: 3_000 });
const switchovers = switchoversTo(urls);
const turnout = createTurnout({
  source,
  database: pgDatabase(pool),
  switchovers,
  logger: jsonLogger,
  retry: { attempts: Number.POSITIVE_INFINITY, firstDelayMs: 200, maxDelayMs: 2_000, uncertainDelayMs: 1_000 },
});

class ChangedTheirMind extends Error {}

const app = express();
app.post('/orders', express.json(), async (request, response) => {
  const { customer, waits, fails } = request.body as { customer: string; waits: boolean; fails: boolean };
  const published = await turnout.transaction(async (tx) => {
    const { rows } = await tx.query<{ steps: number }>(
      `insert into customer (name, steps) values ($1, 1)
         on conflict (name) do update set steps = customer.steps + 1 returning steps`,
      [customer],
    );
    const step = rows[0]!.steps;
    await tx.query('insert into ordered (customer, step) values ($1, $2)', [customer, step]);
    const order = { customer, step, note: 'x'.repeat(100) };
    const event = await (step === 1
      ? turnout.publish(tx, OrderPlaced, order)
      : turnout.publish(tx, OrderChanged, order));
    if (fails) throw new ChangedTheirMind();
    return event;
  });
  if (waits) await Promise.all(switchovers.map((each) => published.reply(each, { timeoutMs: 300 })));
  response.status(201).end();
});
app.use((error: unknown, _request: express.Request, response: express.Response, _next: express.NextFunction) => {
  response.status(error instanceof ChangedTheirMind ? 409 : 503).end(String(error));
});
app.listen(port, '127.0.0.1', () => process.stdout.write('ready\n'));
