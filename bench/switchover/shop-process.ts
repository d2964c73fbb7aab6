// The caller: an order that calls e-mail after its commit, as before Turnout, and in stage rpc of a switchover. Argument: {url, mail}.
// Writes `listening <port>`.
import express from 'express';
import { Pool } from 'pg';
import { createTurnout, defineEvent, defineSwitchover, on } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import { pgDatabase } from 'turnout/pg';
import { z } from 'zod';

const { url, mail } = JSON.parse(process.argv[2] ?? '{}') as { url: string; mail: string };
const pool = new Pool({ connectionString: url, max: 20 });
const OrderPlaced = defineEvent({
  name: 'bench.order-placed',
  version: 1,
  topic: 'bench',
  schema: z.object({ id: z.string(), note: z.string() }),
  key: (order) => order.id,
});
const confirmation = defineSwitchover({
  name: 'confirmation',
  consumer: 'email',
  order: 'none',
  rpc: [on(OrderPlaced, (event, call) => rpcFetch(call, `${mail}/wrapped`, { json: event.data }))],
});
const turnout = createTurnout({ source: 'bench', database: pgDatabase(pool), switchovers: [confirmation] });

interface Order {
  id: string;
  note: string;
}

const app = express();
app.use(express.json());
app.post('/plain', async (request, response) => {
  const order = request.body as Order;
  const client = await pool.connect();
  try {
    await client.query('begin');
    await client.query('insert into orders (id, note) values ($1, $2)', [order.id, order.note]);
    await client.query('commit');
  } finally {
    client.release();
  }
  const answer = await fetch(`${mail}/plain`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(order),
  });
  await answer.text();
  response.status(answer.ok ? 201 : 502).end();
});
app.post('/turnout', async (request, response) => {
  const order = request.body as Order;
  const published = await turnout.transaction(async (tx) => {
    await tx.query('insert into orders (id, note) values ($1, $2)', [order.id, order.note]);
    return turnout.publish(tx, OrderPlaced, order);
  });
  const reply = await published.reply(confirmation);
  response.status(reply.route === 'rpc' && reply.status === 'done' ? 201 : 502).end();
});
const server = app.listen(0, '127.0.0.1', () => {
  const address = server.address();
  process.stdout.write(`listening ${typeof address === 'object' ? address?.port : ''}\n`);
});
