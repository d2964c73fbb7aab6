import { afterEach, describe, expect, test } from 'vitest';
import { defineConfig, defineSwitchover, on, registerSwitchover, switchoverHistory } from 'turnout';
import type { SwitchoverDefinition, TurnoutConfig } from 'turnout';
import { inMemoryBroker } from 'turnout/testing';
import { switchStage } from '../../src/cli/commands/index.ts';
import { OrderChanged, OrderPlaced, producer } from './fixtures/switchover-world.ts';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const answer = () => Promise.resolve({ status: 200, headers: { 'turnout-outcome': 'applied' }, body: {} });
const own = { name: 'order-email', consumer: 'email', order: 'key' } as const;
const smaller = defineSwitchover({ ...own, rpc: [on(OrderPlaced, answer)] });
const larger = defineSwitchover({ ...own, rpc: [on(OrderPlaced, answer), on(OrderChanged, answer)] });

/** A producer's database, a broker, and the command as an operator gives it. */
async function shop() {
  const from = await producer();
  const broker = inMemoryBroker();
  await broker.topics().create([{ name: 'orders', partitions: 3 }]);
  const io = {
    cwd: '.',
    stdout: () => undefined,
    stderr: () => undefined,
    interactive: false,
    stopSignal: () => new AbortController().signal,
  };
  const config = (switchovers: readonly SwitchoverDefinition[] | undefined, more: Partial<TurnoutConfig> = {}) =>
    defineConfig({
      source: 'orders',
      database: from.database,
      events: [OrderPlaced, OrderChanged],
      ...(switchovers === undefined ? {} : { switchovers }),
      ...more,
    });
  return {
    from,
    broker,
    config,
    run: (loaded: TurnoutConfig, stage: string, reason?: string) =>
      switchStage(loaded, { name: 'order-email', stage, reason, force: true, percent: undefined }, io).then(
        ({ data }) => data,
      ),
    row: async () =>
      (await from.pool.query('select stage, event_types as types from turnout.switchover')).rows[0] as {
        stage: string;
        types: string[];
      },
  };
}

describe('the way back to rpc', () => {
  test.each([
    ['an older configuration', [smaller]],
    [
      'a configuration that contradicts the switchover',
      [defineSwitchover({ ...own, consumer: 'fax', rpc: larger.rpc })],
    ],
    ['a configuration without the switchover', []],
    ['a configuration without switchovers', undefined],
  ])('is one statement, without a broker, for %s', async (_, switchovers) => {
    const { from, config, run, row } = await shop();
    await from.register(larger);
    await run(config([larger]), 'event', 'ready');
    expect(await run(config(switchovers), 'rpc', 'a template is broken')).toEqual({
      switchover: 'order-email',
      consumer: 'email',
      stage: 'rpc',
      created: false,
      changed: true,
      epoch: 3,
    });
    expect(await run(config(switchovers), 'rpc', 'once more')).toMatchObject({ changed: false, epoch: 3 });
    expect(await row()).toEqual({ stage: 'rpc', types: [OrderPlaced.name, OrderChanged.name] });
  });

  test('leaves the event types to `register`, for a newer configuration', async () => {
    const { from, config, run, row } = await shop();
    await from.register(smaller);
    await run(config([smaller]), 'event', 'ready');
    // Its type is not even known to the database yet.
    await from.pool.query('delete from turnout.event_type where name = $1', [OrderChanged.name]);
    await run(config([larger]), 'rpc', 'a template is broken');
    expect(await row()).toEqual({ stage: 'rpc', types: [OrderPlaced.name] });
  });
});

describe('register', () => {
  test('adds event types and takes none away', async () => {
    const { from, config, run, row } = await shop();
    await expect(run(config([larger]), 'register')).rejects.toMatchObject({ code: 'TURNOUT_SWITCHOVER_UNKNOWN' });
    await expect(run(config([]), 'register')).rejects.toMatchObject({ code: 'TURNOUT_SWITCHOVER_UNKNOWN' });
    await from.register(smaller);
    expect(await run(config([larger]), 'register', 'changes too')).toMatchObject({ eventTypes: larger.eventTypes });
    expect(await row()).toEqual({ stage: 'rpc', types: larger.eventTypes });
    await expect(run(config([smaller]), 'register')).rejects.toMatchObject({ code: 'TURNOUT_SWITCHOVER_INVALID' });
    expect(await row()).toEqual({ stage: 'rpc', types: larger.eventTypes });
    expect((await switchoverHistory(from.database, 'orders', 'order-email')).map(({ reason }) => reason)).toEqual([
      'test',
      `changes too (event types added: ${OrderChanged.name})`,
    ]);
  });
});

describe('a first rpc', () => {
  test('needs broker and definition, and goes on where it was stopped', async () => {
    const { from, broker, config, run } = await shop();
    await expect(run(config([smaller]), 'rpc')).rejects.toMatchObject({ code: 'TURNOUT_CONFIG_INVALID' });
    await expect(run(config([], { broker }), 'rpc')).rejects.toMatchObject({ code: 'TURNOUT_SWITCHOVER_UNKNOWN' });
    await registerSwitchover(from.database, 'orders', smaller, 'interrupted');
    expect(await run(config([smaller], { broker }), 'rpc')).toMatchObject({
      created: true,
      since: { orders: [0n, 0n, 0n] },
    });
  });
});

describe('a promotion', () => {
  test('is refused when the broker has forgotten where the consumer starts', async () => {
    const { from, broker, config, run, row } = await shop();
    // Recorded long ago; the group was never seen again.
    await from.register(smaller);
    await expect(run(config([smaller], { broker }), 'event', 'ready')).rejects.toMatchObject({
      code: 'TURNOUT_CONSUMER_OFFSETS_MISSING',
      details: { consumer: 'email', topic: 'orders', partitions: [0, 1, 2] },
    });
    expect(await row()).toMatchObject({ stage: 'rpc' });
    await broker.source().commitWhileEmpty('email', 'orders', new Map([0, 1, 2].map((partition) => [partition, 0n])));
    expect(await run(config([smaller], { broker }), 'event', 'ready')).toMatchObject({ stage: 'event' });
  });
});
