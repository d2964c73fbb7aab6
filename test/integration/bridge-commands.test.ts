import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import { freePort, spawnNode, uniqueName, waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database, sharedKafka } from '../support/vitest.ts';
import { legacyEndpoint } from './fixtures/legacy-endpoint.ts';

const command = new URL('../../src/cli/main.ts', import.meta.url);
const config = fileURLToPath(new URL('./fixtures/cli/legacy.config.ts', import.meta.url));

test('`turnout proxy` and `turnout bridge` between them take a caller and an endpoint that know nothing from calls to events', async () => {
  const [{ brokers }, created, legacy, port] = await Promise.all([
    sharedKafka(),
    database({ template: migrated('producer', 'consumer') }),
    legacyEndpoint(),
    freePort(),
  ]);
  const topic = uniqueName('legacy');
  const turnout = (...args: string[]) => {
    const running = spawnNode(command, [...args, '--config', config], {
      TEST_TOPIC: topic,
      TEST_ENDPOINT: legacy.url,
      TEST_URL: created.url,
      TEST_BROKERS: brokers.join(','),
      TEST_PORT: String(port),
    });
    onTestFinished(async () => void (await running.kill('SIGKILL')));
    return running;
  };
  const once = async (...args: string[]): Promise<string> => {
    const running = turnout(...args);
    const { code } = await running.exited;
    expect(code, running.output).toBe(0);
    return running.output;
  };
  onTestFinished(() => legacy.close());
  await once('topics', 'apply');
  await once('switch', 'placing', 'rpc');
  const services = [turnout('run'), turnout('proxy', 'front'), turnout('bridge', topic)];
  for (const each of services) await each.line(/: ready$/, { deadlineMs: 40_000 });

  const place = (step: number) =>
    fetch(`http://127.0.0.1:${port}/orders`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ orderId: 'a', step }),
    });
  expect((await place(1)).status).toBe(200);
  await once('switch', 'placing', 'event', '--force', '--reason', 'the new way');
  expect((await place(2)).status).toBe(202);
  await waitFor(() => legacy.effects.length === 2, { what: 'the bridge to call', deadlineMs: 20_000 });
  expect(legacy.effects.map(({ path, body }) => [path, (JSON.parse(body) as { step: number }).step])).toEqual([
    ['/by-call', 1],
    ['/by-bridge', 2],
  ]);
  const status = await once('status');
  expect(status).toContain('NOT promised: that business change and event commit together; a proxy');
  for (const each of services) expect((await each.kill('SIGTERM')).code, each.output).toBe(0);
}, 120_000);
