// The long-running commands while the database or the broker is away: they wait, and stop when they are asked to.
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { freePort, spawnNode, uniqueName, waitFor } from '../support/index.ts';
import { database } from '../support/vitest.ts';
import { consumerTemplate } from '../integration/fixtures/consumer.ts';

const main = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const config = fileURLToPath(new URL('../integration/fixtures/cli/turnout.config.ts', import.meta.url));

async function stopsWhileAway(command: readonly string[], environment: Record<string, string>): Promise<void> {
  const turnout = spawnNode(main, [...command, '--config', config], environment);
  try {
    await waitFor(() => turnout.output !== '', {
      what: 'the command to say that something is away',
      deadlineMs: 30_000,
    });
    const { code, signal } = await turnout.kill('SIGTERM');
    expect({ code, signal }, turnout.output).toEqual({ code: 0, signal: null });
  } finally {
    await turnout.kill('SIGKILL');
  }
}

test.each([['run'], ['consume']])('turnout %s stops on SIGTERM while its database is away', async (command) => {
  const nobody = `postgres://postgres@127.0.0.1:${await freePort()}/nothing`;
  const consumer = uniqueName('away').replaceAll('_', '-');
  await stopsWhileAway([command, ...(command === 'consume' ? [consumer] : [])], {
    TEST_TOPIC: uniqueName('away'),
    TEST_PRODUCER_URL: nobody,
    TEST_CONSUMER_URL: nobody,
    TEST_BROKERS: `127.0.0.1:${await freePort()}`,
    TEST_CONSUMER: consumer,
  });
});

test('turnout consume stops on SIGTERM while only its broker is away', async () => {
  const { url } = await database({ template: consumerTemplate });
  const consumer = uniqueName('away').replaceAll('_', '-');
  await stopsWhileAway(['consume', consumer], {
    TEST_TOPIC: uniqueName('away'),
    TEST_PRODUCER_URL: url,
    TEST_CONSUMER_URL: url,
    TEST_BROKERS: `127.0.0.1:${await freePort()}`,
    TEST_CONSUMER: consumer,
  });
});
