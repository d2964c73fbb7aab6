// The callee: the same handler twice, as it always was and behind the gate. Argument: {url}. Writes `listening <port>`.
import express from 'express';
import { Pool } from 'pg';
import { createEndpoint } from 'turnout';
import { switchedOver } from 'turnout/express';
import { joinPool, pgDatabase } from 'turnout/pg';

const { url } = JSON.parse(process.argv[2] ?? '{}') as { url: string };
const pool = joinPool(new Pool({ connectionString: url, max: 20 }));
const endpoint = createEndpoint({ consumer: 'email', database: pgDatabase(pool), order: 'none' });

const send: express.RequestHandler = async (request, response) => {
  const { id } = request.body as { id: string };
  await pool.query('insert into mail (order_id) values ($1)', [id]);
  response.status(202).json({ queued: true });
};
const app = express();
app.post('/plain', express.json(), send);
app.post('/wrapped', express.json(), switchedOver(endpoint), send);
const server = app.listen(0, '127.0.0.1', () => {
  const address = server.address();
  process.stdout.write(`listening ${typeof address === 'object' ? address?.port : ''}\n`);
});
