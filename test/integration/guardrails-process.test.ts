// The same as guardrails.test.ts, with the real processes and Apache Kafka.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import type { Alert } from 'turnout';
import { spawnNode, uniqueName, waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database, sharedKafka } from '../support/vitest.ts';

const main = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const config = fileURLToPath(new URL('./fixtures/guardrails/turnout.config.ts', import.meta.url));

test('turnout run steps back by itself when what turnout consume handles is parked, and posts it to a webhook', async () => {
  const [from, to, { brokers }] = await Promise.all([
    database({ template: migrated('producer') }),
    database({ template: migrated('consumer') }),
    sharedKafka(),
  ]);
  const shop = from.pool();
  const received: { alert: Alert; authorization: string | undefined }[] = [];
  const server = createServer((request, response) => {
    let text = '';
    request.on('data', (chunk: Buffer) => (text += chunk.toString()));
    request.on('end', () => {
      received.push({ alert: JSON.parse(text) as Alert, authorization: request.headers.authorization });
      response.writeHead(202).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => void server.close());
  const environment = {
    TEST_TOPIC: uniqueName('guardrails'),
    TEST_CONSUMER: uniqueName('guarded').replaceAll('_', '-'),
    TEST_PRODUCER_URL: from.url,
    TEST_CONSUMER_URL: to.url,
    TEST_BROKERS: brokers.join(','),
    TEST_WEBHOOK: `http://127.0.0.1:${(server.address() as AddressInfo).port}/alerts`,
  };
  const start = (...args: string[]) => spawnNode(main, [...args, '--config', config], environment);
  expect((await start('topics', 'apply').exited).code).toBe(0);
  expect((await start('switch', 'confirmation', 'rpc').exited).code).toBe(0);
  const processes = [start('run'), start('consume', environment.TEST_CONSUMER)];
  try {
    await waitFor(() => processes.every(({ output }) => /started|ready|running/i.test(output)), {
      what: 'the processes to run',
      deadlineMs: 30_000,
    });
    await shop.query("select turnout.set_stage('shop', 'confirmation', 'event', 'an experiment', 0, true)");
    const events = ['a', 'b', 'c'].map((orderId) => ({
      type: 'shop.order-placed',
      version: 1,
      key: orderId,
      data: { orderId },
    }));
    await shop.query("select from turnout.publish_events('shop', $1::json, '{confirmation}')", [
      JSON.stringify(events),
    ]);
    await waitFor(async () => (await shop.query('select stage from turnout.switchover')).rows[0].stage === 'rpc', {
      what: 'the step back',
      deadlineMs: 40_000,
    });
    await waitFor(() => received.length > 0, { what: 'the webhook' });
  } finally {
    for (const each of processes) void each.kill('SIGTERM');
    await Promise.all(processes.map((each) => each.exited));
  }
  expect(received).toMatchObject([
    {
      authorization: 'Bearer alerts',
      alert: { kind: 'stepped-back', switchover: 'confirmation', stage: 'event', to: 'rpc' },
    },
  ]);
  const { rows } = await shop.query('select to_stage, automatic from turnout.switchover_history order by id');
  expect(rows).toEqual([
    { to_stage: 'rpc', automatic: false },
    { to_stage: 'event', automatic: false },
    { to_stage: 'rpc', automatic: true },
  ]);
});
