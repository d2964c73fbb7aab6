// Publishes at a steady rate, one event in each transaction. Argument: {url, topic, rate, seconds}. Writes `wrote <id> <ns>`
// (the monotonic clock, shared by all processes, when the commit was confirmed), then `done`.
import { setTimeout as delay } from 'node:timers/promises';
import { Pool } from 'pg';

const { url, rate, seconds } = JSON.parse(process.argv[2] ?? '{}') as { url: string; rate: number; seconds: number };
const pool = new Pool({ connectionString: url, max: 8 });
const payload = JSON.stringify({ orderId: 'order', note: 'x'.repeat(360) });
const statement = { name: 'publish', text: `select turnout.publish('bench', 'bench.event', 1, $1, $2) as id` };
const lines: string[] = [];

async function publish(n: number): Promise<void> {
  const { rows } = await pool.query<{ id: string }>({ ...statement, values: [`key-${n % 1_000}`, payload] });
  lines.push(`wrote ${rows[0]?.id} ${process.hrtime.bigint()}`);
}

const total = rate * seconds;
const began = performance.now();
const inFlight: Promise<void>[] = [];
for (let n = 0; n < total; n++) {
  const due = began + (n * 1_000) / rate;
  const wait = due - performance.now();
  if (wait > 0.5) await delay(wait);
  inFlight.push(publish(n));
}
await Promise.all(inFlight);
process.stdout.write(`${lines.join('\n')}\ndone\n`);
await pool.end();
