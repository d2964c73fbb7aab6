// `turnout switch` through all stages, and back with the event-routed backlog: what nobody has read yet comes through the old
// endpoint at once.
import type { PoolClient } from 'pg';
import { describe, expect, onTestFinished, test } from 'vitest';
import {
  createRelay,
  defineConfig,
  defineConsumer,
  on,
  redrive,
  rpcSweeper,
  runConsumer,
  setStage,
  silentLogger,
} from 'turnout';
import type { HandlerContext, Service, SwitchoverDefinition, TurnoutEvent } from 'turnout';
import { inMemoryBroker } from 'turnout/testing';
import { switchStage } from '../../src/cli/commands/index.ts';
import { applyTopics } from '../../src/relay/index.ts';
import { switchoverHistory } from '../../src/switchover/index.ts';
import type { Finding } from '../../src/switchover/index.ts';
import { waitFor } from '../support/index.ts';
import { consumer, emailSwitchover, OrderChanged, OrderPlaced, producer } from './fixtures/switchover-world.ts';
import type { Order } from './fixtures/switchover-world.ts';

const io = {
  cwd: '.',
  stdout: () => undefined,
  stderr: () => undefined,
  interactive: false,
  stopSignal: () => new AbortController().signal,
};
const keys = ['a', 'b', 'c'];

async function world(order: 'key' | 'none') {
  const [from, to] = await Promise.all([producer(), consumer({ order })]);
  const email: SwitchoverDefinition = {
    ...emailSwitchover(() => to.url, { order }),
    checks: { minDeliveries: 6, minEffects: 3, quietDays: 0 },
  };
  await from.register(email);
  const broker = inMemoryBroker();
  await applyTopics(broker.topics(), [OrderPlaced, OrderChanged]);
  const effect = async (event: TurnoutEvent<Order>, { tx }: HandlerContext<PoolClient>) => {
    await tx.query('insert into effects (order_id, step, how) values ($1, $2, $3)', [
      event.data.orderId,
      event.data.step,
      'event',
    ]);
  };
  const definition = defineConsumer(to.database, {
    name: 'email',
    from: 'beginning',
    inSwitchover: [OrderPlaced, OrderChanged],
    handlers: [on(OrderPlaced, effect), on(OrderChanged, effect)],
  });
  const running = new Set<Service>();
  onTestFinished(async () => {
    for (const each of running) await each.stop();
    await to.close();
  });
  const start = async (each: Service) => {
    running.add(each);
    await each.start();
  };
  const relay = () => createRelay({ database: from.database, publisher: broker.publisher(), logger: silentLogger });
  const read = async () => {
    const { rows } = await to.pool.query<{ n: number }>(
      'select coalesce(sum(p.next_offset), 0)::int as n from turnout.position p',
    );
    return rows[0]!.n;
  };
  return {
    from,
    to,
    email,
    start,
    stop: async (each: Service) => {
      await each.stop();
      running.delete(each);
    },
    relay,
    consuming: () => runConsumer(definition, { source: broker.source(), sweepEveryMs: 50 }),
    sweeper: () =>
      rpcSweeper({
        source: 'orders',
        database: from.database,
        switchovers: [email],
        pollMs: 10,
        retry: { attempts: 1, firstDelayMs: 10, maxDelayMs: 50 },
      }),
    /** One event for each key, each in a transaction of its own. */
    async publish(step: number) {
      for (const key of keys)
        await from.pool.query(
          `select turnout.publish('orders', $1, 1, $2, json_build_object('orderId', $2::text, 'step', $3::int), switchovers => '{order-email}')`,
          [step === 1 ? OrderPlaced.name : OrderChanged.name, key, step],
        );
    },
    published: (count: number) =>
      waitFor(
        async () => {
          const bounds = await broker.source().bounds('orders');
          return bounds.reduce((sum, { high }) => sum + Number(high), 0) === count;
        },
        { what: `${count} events to be published` },
      ),
    allRead: (count: number) => waitFor(async () => (await read()) === count, { what: `${count} events to be read` }),
    /** Forced forward, unless it is to ask the broker. */
    switchTo: (
      stage: string,
      {
        evidence = true,
        asking = false,
        ...more
      }: { evidence?: boolean; asking?: boolean; redrive?: boolean; percent?: number } = {},
    ) =>
      switchStage(
        defineConfig({
          source: 'orders',
          database: from.database,
          events: [OrderPlaced, OrderChanged],
          switchovers: [email],
          ...(evidence ? { consumerDatabases: { email: to.database } } : {}),
          ...(asking ? { broker } : {}),
        }),
        { name: email.name, stage, reason: 'test', force: stage !== 'rpc' && !asking, percent: undefined, ...more },
        io,
      ).then(({ data }) => data),
    nothingOwed: () => waitFor(async () => (await from.owed()).length === 0, { what: 'no call to be owed' }),
    /** The steps that had their effect, by key: none lost, none doubled, for ordered ones none out of order. */
    async effects(): Promise<Record<string, number[]>> {
      const all: Record<string, number[]> = {};
      for (const key of keys) {
        all[key] = await to.effects(key);
        if (order === 'none') all[key].sort((a, b) => a - b);
      }
      return all;
    },
  };
}

const upTo = (step: number) =>
  Object.fromEntries(keys.map((key) => [key, Array.from({ length: step }, (_, index) => index + 1)]));

describe('turnout switch', () => {
  test.each(['key', 'none'] as const)(
    'leads through all stages by what it finds, each effect once, without force (order %s)',
    async (order) => {
      const w = await world(order);
      const asked = (stage: string, percent?: number) =>
        w.switchTo(stage, { asking: true, ...(percent === undefined ? {} : { percent }) });
      const refusal = (stage: string, percent?: number) =>
        asked(stage, percent).then(
          () => undefined,
          (error: { details: { findings?: Finding[] } }) =>
            error.details.findings?.filter(({ verdict }) => verdict !== 'ready').map(({ check }) => check),
        );
      // At 30 % one key goes by event, at 60 % two.
      await w.from.pool.query(
        `update turnout.switchover set salt = (
           select n::text from generate_series(1, 1000) n
            where turnout.ramp_bucket(n::text, 'a') < 3000 and turnout.ramp_bucket(n::text, 'b') between 3000 and 5999
              and turnout.ramp_bucket(n::text, 'c') >= 6000 limit 1)`,
      );
      await w.start(w.relay());
      await w.start(w.sweeper());
      expect(await refusal('shadow')).toEqual(['consumer-running']);
      await w.start(w.consuming());
      await w.publish(1);
      await w.allRead(3);
      expect(await asked('shadow')).toMatchObject({ changed: true, epoch: 2 });
      await w.publish(2);
      await w.allRead(6);
      expect(await refusal('ramp', 30)).toEqual(expect.arrayContaining(['deliveries']));
      await w.publish(3);
      await w.allRead(9);
      await w.nothingOwed();
      await waitFor(async () => (await refusal('ramp', 30)) === undefined, { what: 'the deliveries to be compared' });
      expect(await refusal('ramp', 60)).toEqual(['effects']);
      for (const step of [4, 5, 6]) await w.publish(step);
      await w.allRead(18);
      await w.nothingOwed();
      expect(await asked('ramp', 60)).toMatchObject({ changed: true, epoch: 4, percent: 60 });
      for (const step of [7, 8]) await w.publish(step);
      await w.allRead(24);
      await w.nothingOwed();
      expect(await asked('event')).toMatchObject({ epoch: 5 });
      await w.publish(9);
      await w.allRead(27);
      // The endpoint tells of its calls a second after the first one; a fast machine is here before.
      await waitFor(async () => (await w.to.pool.query('select from turnout.endpoint_seen')).rowCount! > 0, {
        what: 'the endpoint to tell that it is called',
      });
      expect(await asked('done')).toMatchObject({ epoch: 6 });
      await w.publish(10);
      await w.allRead(30);
      const { rows: ways } = await w.to.pool.query<{ key: string; event: string }>(
        `select order_id as key, string_agg(step::text, ',' order by step) filter (where how = 'event') as event from effects group by 1 order by 1`,
      );
      expect(ways).toEqual([
        { key: 'a', event: '4,5,6,7,8,9,10' },
        { key: 'b', event: '7,8,9,10' },
        { key: 'c', event: '9,10' },
      ]);
      expect(await w.effects()).toEqual(upTo(10));
      expect((await w.from.pool.query('select from turnout.rpc_open')).rowCount).toBe(0);
      const history = await switchoverHistory(w.from.database, 'orders', w.email.name);
      expect(history.map(({ to, percent }) => [to, percent])).toEqual([
        ['rpc', 0],
        ['shadow', 0],
        ['ramp', 30],
        ['ramp', 60],
        ['event', 0],
        ['done', 0],
      ]);
      expect(history.every(({ forced }) => !forced)).toBe(true);
    },
  );
});

describe('switch rpc --redrive', () => {
  test.each(['key', 'none'] as const)(
    'brings what was held up through the old endpoint; the late copies are duplicates (order %s)',
    async (order) => {
      const w = await world(order);
      const relay = w.relay();
      const consuming = w.consuming();
      await w.start(relay);
      await w.start(consuming);
      await w.switchTo('event');
      await w.publish(1);
      await w.publish(2);
      await w.allRead(6);
      expect(await w.effects()).toEqual(upTo(2));
      // The consumer is away; then the relay, too.
      await w.stop(consuming);
      await w.publish(3);
      await w.publish(4);
      await w.published(12);
      await w.stop(relay);
      await w.publish(5);

      const back = await w.switchTo('rpc', { redrive: true });
      expect(back).toMatchObject({ changed: true, epoch: 3, evidence: true, transactionsOver: true });
      // All that was not read, and hardly more: what shares a tick with it.
      expect(back['redriven']).toBeGreaterThanOrEqual(9);
      expect(back['redriven']).toBeLessThanOrEqual(12);
      await w.publish(6);
      const sweeper = w.sweeper();
      await w.start(sweeper);
      await w.nothingOwed();
      expect(await w.effects()).toEqual(upTo(6));

      // Asked again, nothing happens again.
      expect(await w.switchTo('rpc', { redrive: true })).toMatchObject({ changed: false, epoch: 3 });
      await w.nothingOwed();
      // The late copies.
      await w.start(w.relay());
      await w.start(w.consuming());
      await w.allRead(18);
      expect(await w.effects()).toEqual(upTo(6));
      expect((await w.to.pool.query('select from turnout.held')).rowCount).toBe(0);
      expect((await w.to.pool.query('select kind, detail from turnout.alarm')).rows).toEqual([]);
      const { rows: paths } = await w.to.pool.query<{ step: number; how: string }>(
        'select distinct step, how from effects order by step, how',
      );
      expect(paths.map(({ how }) => how)).toEqual(['event', 'event', 'rpc', 'rpc', 'rpc', 'rpc']);
      // And forward again.
      await w.switchTo('event');
      await w.publish(7);
      await w.allRead(21);
      expect(await w.effects()).toEqual(upTo(7));
    },
  );

  test('takes everything since rpc was left, where nobody knows how far the consumer is', async () => {
    const w = await world('key');
    const relay = w.relay();
    const consuming = w.consuming();
    await w.start(relay);
    await w.start(consuming);
    await w.switchTo('event');
    await w.publish(1);
    await w.switchTo('rpc');
    const sweeper = w.sweeper();
    await w.start(sweeper);
    await w.allRead(3);
    await w.switchTo('event');
    await w.publish(2);
    await w.allRead(6);
    await w.stop(consuming);
    await w.publish(3);
    // Those of the first time in `event` are left out: 2 and 3 are routed since.
    expect(await w.switchTo('rpc', { redrive: true, evidence: false })).toMatchObject({ redriven: 6, evidence: false });
    await w.nothingOwed();
    expect(await w.effects()).toEqual(upTo(3));
    await w.start(w.consuming());
    await w.allRead(9);
    expect(await w.effects()).toEqual(upTo(3));
  });
});

describe('turnout.redrive', () => {
  test('takes what is named, once, and only what was routed to this consumer’s events', async () => {
    const w = await world('none');
    await w.publish(1);
    await setStage(w.from.database, 'orders', w.email.name, 'event', { reason: 'test', force: true });
    await w.publish(2);
    const { rows } = await w.from.pool.query<{ seq: string; xid: string }>(
      'select seq::text as seq from turnout.outbox order by outbox.seq',
    );
    await w.from.pool.query('delete from turnout.rpc_delivery');
    // The relay has published nothing; of a consumer that has read everything there ever was, nothing is taken.
    await w.from.pool.query(
      `insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay)
       values (0, 1, '1:1:', pg_current_snapshot(), '{}', 'test'), (0, 2, pg_current_snapshot(), pg_current_snapshot(), '{"orders/1": {"orders": [6]}}', 'test')`,
    );
    const consumed = [{ topic: 'orders', partition: 0, source: 'orders', generation: 1, sequence: '6' }];
    const asked = (more: Parameters<typeof redrive>[3]) => redrive(w.from.database, 'orders', w.email.name, more);
    expect(await asked({ consumed })).toBe(0);
    // One routed as a call, one as an event.
    const seqs = [rows[0]!.seq, rows[5]!.seq];
    expect([await asked({ consumed, seqs }), await asked({ consumed, seqs })]).toEqual([1, 0]);
    expect(await asked({ consumed: [{ ...consumed[0]!, sequence: '5' }] })).toBe(2);
    expect((await w.from.owed()).map(({ due }) => due)).toEqual([true, true, true]);
    // In a newer generation all of the older one was read, and the other way round none of the newer.
    await w.from.pool.query('delete from turnout.rpc_delivery');
    expect(await asked({ consumed: [{ ...consumed[0]!, generation: 2, sequence: '0' }] })).toBe(0);
    expect(await asked({ consumed: [] })).toBe(3);
    expect((await switchoverHistory(w.from.database, 'orders', w.email.name)).at(-1)).toMatchObject({
      from: 'event',
      to: 'event',
      detail: { redriven: 3 },
    });
  });

  test('is refused when the switchover is done, or its endpoint can’t know what it has had', async () => {
    const w = await world('none');
    const asked = () => redrive(w.from.database, 'orders', w.email.name, {});
    await expect(redrive(w.from.database, 'orders', 'nobody', {})).rejects.toMatchObject({
      code: 'TURNOUT_SWITCHOVER_UNKNOWN',
    });
    await w.from.pool.query(`update turnout.switchover set endpoint = 'bridged'`);
    await expect(asked()).rejects.toMatchObject({ code: 'TURNOUT_STAGE_UNAVAILABLE' });
    await w.from.pool.query(`update turnout.switchover set endpoint = 'wrapped', stage = 'done'`);
    await expect(asked()).rejects.toMatchObject({ code: 'TURNOUT_STAGE_FINAL' });
    await expect(w.switchTo('event', { redrive: true })).rejects.toMatchObject({ code: 'TURNOUT_STAGE_ORDER' });
  });
});
