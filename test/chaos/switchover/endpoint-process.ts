// The old endpoint of one service, behind the gate. Argument: {name, order, url, port}. Writes `ready`.
import { setTimeout as delay } from 'node:timers/promises';
import express from 'express';
import { Pool } from 'pg';
import { createEndpoint, drainHeld, jsonLogger } from 'turnout';
import { switchedOver } from 'turnout/express';
import { joinPool, pgDatabase } from 'turnout/pg';
import { consumerOf } from './consumer.ts';
import type { Order } from './services.ts';

const { name, order, url, port } = JSON.parse(process.argv[2] ?? '{}') as {
  name: string;
  order: 'key' | 'none';
  url: string;
  port: number;
};
const pool = joinPool(new Pool({ connectionString: url, max: 12, connectionTimeoutMillis: 3_000 }));
const endpoint = createEndpoint({
  consumer: name,
  database: pgDatabase(pool),
  order,
  handlerTimeoutMs: 5_000,
  logger: jsonLogger,
  ...(order === 'key' ? { drain: drainHeld(consumerOf(name, pool)) } : {}),
});

const app = express();
app.post('/', express.json(), switchedOver(endpoint), async (request, response) => {
  const { customer, step } = request.body as Order;
  const chance = Math.random();
  if (chance < 0.1) await delay(chance * 2_000);
  await pool.query(`insert into effect (customer, step, path) values ($1, $2, 'rpc')`, [customer, step]);
  if (chance > 0.98) throw new Error('The handler failed after it had written.');
  response.status(204).end();
});
app.use((error: unknown, _request: express.Request, response: express.Response, _next: express.NextFunction) => {
  response.status(500).end(String(error));
});
app.listen(port, '127.0.0.1', () => process.stdout.write('ready\n'));
