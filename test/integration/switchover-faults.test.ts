import { randomInt } from 'node:crypto';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { createTurnout, occurrence, rpcSweeper, setStage } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { typeOrmDatabase } from 'turnout/typeorm';
import { DataSource } from 'typeorm';
import type { Stage } from 'turnout';
import { parseRoutes } from '../../src/event/index.ts';
import { apply, ensureInboxPartition, hold, nextHeld } from '../../src/inbox/index.ts';
import type { Arrival, Verdict } from '../../src/inbox/index.ts';
import { rampBucket, routeFor } from '../../src/switchover/index.ts';
import { spawnNode, waitFor } from '../support/index.ts';
import { hammer } from '../support/service-stress.ts';
import { consumer, emailSwitchover, OrderChanged, OrderPlaced, producer } from './fixtures/switchover-world.ts';
import type { SwitchoverOptions } from './fixtures/switchover-world.ts';

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const quickRetry = { attempts: 1, firstDelayMs: 10, maxDelayMs: 50 };

async function world(options: SwitchoverOptions & { earlyWaitMs?: number } = {}) {
  const [from, to] = await Promise.all([
    producer(),
    consumer({
      order: options.order ?? 'none',
      ...(options.earlyWaitMs === undefined ? {} : { earlyWaitMs: options.earlyWaitMs }),
    }),
  ]);
  const email = emailSwitchover(() => to.url, options);
  await from.register(email);
  const turnout = from.turnout([email], { retry: quickRetry });
  const sweeper = rpcSweeper({
    source: 'orders',
    database: from.database,
    switchovers: [email],
    pollMs: 10,
    retry: quickRetry,
  });
  closers.push(
    to.close,
    () => turnout.close(),
    () => sweeper.stop(),
  );
  return { from, to, email, turnout, sweeper };
}
type World = Awaited<ReturnType<typeof world>>;

const nothingOwed = ({ from }: World) =>
  waitFor(async () => (await from.owed()).length === 0, { what: 'no call to be owed', deadlineMs: 30_000 });

test('a process that dies between its commit and its call: the call is made once, by the sweeper', async () => {
  const w = await world({ timeoutMs: 500 });
  const dying = spawnNode(new URL('./fixtures/publisher-process.ts', import.meta.url), [w.from.url, w.to.url]);
  expect(await dying.exited).toMatchObject({ signal: 'SIGKILL' });
  expect(await w.from.owed()).toMatchObject([{ due: null, attempts: 0 }]);
  expect(await w.to.effects()).toEqual([]);
  await w.sweeper.start();
  await nothingOwed(w);
  expect(await w.to.effects()).toEqual([1]);
  expect(w.sweeper.counters()).toMatchObject({ redriven: 1 });
});

test('a sweeper bears being started and stopped from all sides', async () => {
  const w = await world();
  await hammer(w.sweeper, { rounds: 30 });
  await w.sweeper.start();
  await w.turnout.transaction((tx) => w.turnout.publish(tx, OrderPlaced, { orderId: 'order-1', step: 1 }));
  await nothingOwed(w);
});

test('a sweeper that can’t reach its database at the start says so', async () => {
  const { Pool } = await import('pg');
  const nowhere = new Pool({ host: '127.0.0.1', port: 1, connectionTimeoutMillis: 500 });
  const sweeper = rpcSweeper({ source: 'orders', database: pgDatabase(nowhere), switchovers: [] });
  await expect(sweeper.start()).rejects.toMatchObject({ code: 'TURNOUT_DATABASE_UNREACHABLE' });
  await nowhere.end();
});

test('a sweeper bears losing its database for a while', async () => {
  const w = await world();
  await w.sweeper.start();
  for (let round = 0; round < 3; round++) {
    await w.from.pool.query(
      'select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()',
    );
    await w.from.pool.query(
      `select turnout.publish('orders', 'orders.order-placed', 1, 'order-' || $1::text, json_build_object('orderId', 'x', 'step', $1::int), switchovers => '{order-email}')`,
      [round],
    );
  }
  await nothingOwed(w);
  expect((await w.to.effects()).toSorted((a, b) => a - b)).toEqual([0, 1, 2]);
});

test('with TypeORM, the calls start when the user’s own transaction has committed', async () => {
  const w = await world();
  const dataSource = await new DataSource({ type: 'postgres', url: w.from.url }).initialize();
  const turnout = createTurnout({
    source: 'orders',
    database: typeOrmDatabase(dataSource),
    switchovers: [w.email],
    retry: quickRetry,
  });
  closers.push(async () => {
    await turnout.close();
    await dataSource.destroy();
  });
  const published = await dataSource.transaction(async (manager) => {
    const inside = await turnout.publish(manager, OrderPlaced, { orderId: 'order-1', step: 1 });
    expect(await inside.reply(w.email, { timeoutMs: 50 })).toMatchObject({ status: 'pending' });
    expect(w.to.requests()).toBe(0);
    return inside;
  });
  expect(await published.reply(w.email)).toMatchObject({ status: 'done', outcome: 'applied' });
  const failing = dataSource.transaction(async (manager) => {
    await turnout.publish(manager, OrderPlaced, { orderId: 'order-2', step: 2 });
    throw new Error('no');
  });
  await expect(failing).rejects.toThrow('no');
  expect(
    await (
      await turnout.transaction((manager) => turnout.publish(manager, OrderPlaced, { orderId: 'order-3', step: 3 }))
    ).reply(w.email),
  ).toMatchObject({
    status: 'done',
  });
  expect(await w.to.effects()).toEqual([1, 3]);
});

test('routes are the same in SQL and in TypeScript', async () => {
  const { pool } = await producer();
  const cases = fc
    .sample(
      fc.record({
        stage: fc.constantFrom<Stage>('rpc', 'shadow', 'ramp', 'ramp', 'ramp', 'event', 'done'),
        percent: fc.nat(10_000).map((n) => n / 100),
        salt: fc.oneof(fc.uuid(), fc.string({ unit: 'grapheme', maxLength: 20 })),
        key: fc.string({ unit: 'grapheme', maxLength: 40 }),
      }),
      3_000,
    )
    .filter(({ salt, key }) => !`${salt}${key}`.includes('\0') && `${salt}${key}`.isWellFormed())
    // Right at the edge as well, where a wrong rounding shows.
    .flatMap((each) => [each, { ...each, percent: rampBucket(each.salt, each.key) / 100 }]);
  const { rows } = await pool.query<{ bucket: number; route: string }>(
    `select turnout.ramp_bucket(c.salt, c.key) as bucket, turnout.route_for(c.stage, c.percent, c.salt, c.key) as route
       from rows from (json_to_recordset($1::json) as (stage text, percent numeric, salt text, key text)) with ordinality as c (stage, percent, salt, key, place)
      order by c.place`,
    [JSON.stringify(cases)],
  );
  expect(rows).toEqual(
    cases.map((each) => ({ bucket: rampBucket(each.salt, each.key), route: routeFor(each, each.key) })),
  );
  // Not a parity of constants.
  expect(new Set(rows.filter((_, index) => cases[index]!.stage === 'ramp').map(({ route }) => route))).toEqual(
    new Set(['rpc', 'event']),
  );
});

// The event path as the consumer's process takes it: the outbox stands for Kafka, read late, several times, and from several sides.
async function arriveAsEvent(w: World, seqs: readonly string[]): Promise<void> {
  const { rows } = await w.from.pool.query<{
    seq: string;
    id: string;
    type: string;
    key: string;
    at: Date;
    routes: string | null;
    payload: { orderId: string; step: number };
  }>(
    `select o.seq::text as seq, o.id::text as id, o.type, o.aggregateid as key, o.occurred_at as at, o.routes, o.payload from turnout.outbox o where o.seq = any ($1::bigint[]) order by o.seq`,
    [seqs],
  );
  for (const row of rows) {
    const stamp = row.routes === null ? undefined : parseRoutes(row.routes).find((each) => each.consumer === 'email');
    if (stamp?.route !== 'event') continue;
    const arrival: Arrival = {
      consumer: 'email',
      effectKey: `email.${row.id}`,
      eventId: row.id,
      eventType: row.type,
      source: 'orders',
      topic: 'orders',
      key: row.key,
      occurredAt: row.at,
      path: 'event',
      turn: stamp.turn,
    };
    await ensureInboxPartition(w.to.database, arrival.occurredAt);
    const verdict = await w.to.database.transaction(async (tx): Promise<Verdict> => {
      const got = await apply(w.to.database.within(tx), arrival, async () => {
        await tx.query('insert into effects (order_id, step, how) values ($1, $2, $3)', [
          row.payload.orderId,
          row.payload.step,
          'event',
        ]);
        return { outcome: 'applied' };
      });
      if (got.kind === 'early') {
        const message = {
          topic: 'orders',
          partition: 0,
          offset: BigInt(row.seq),
          key: row.key,
          value: Buffer.from(JSON.stringify(row.payload)),
          headers: {},
        };
        await hold(w.to.database.within(tx), arrival, message, 'early');
      }
      return got;
    });
    expect(['done', 'early']).toContain(verdict.kind);
    if (verdict.kind === 'done') await drain(w, row.key);
  }
}

async function drain(w: World, key: string): Promise<void> {
  const next = await nextHeld(w.to.pool, { consumer: 'email', source: 'orders', topic: 'orders', key });
  if (next !== undefined) await arriveAsEvent(w, [next.message.offset.toString()]);
}

describe('flips while events flow', () => {
  test('of an ordered switchover: each effect once, and each key in its order', async () => {
    const w = await world({ order: 'key', timeoutMs: 1_000 });
    await w.sweeper.start();
    const keys = ['a', 'b', 'c', 'd'];
    const perKey = 24;
    const waiting: string[] = [];
    let publishing = true;

    const publishers = keys.map(async (orderId) => {
      for (let step = 1; step <= perKey; step++) {
        const published = await w.turnout.transaction((tx) =>
          w.turnout.publish(tx, step === 1 ? OrderPlaced : OrderChanged, { orderId, step }),
        );
        waiting.push(published.seq.toString());
        if (step % 5 === 0) await published.reply(w.email, { timeoutMs: 200 });
      }
    });
    const flips = (async () => {
      for (let flip = 0; publishing; flip++) {
        await setStage(w.from.database, 'orders', 'order-email', flip % 2 === 0 ? 'event' : 'rpc', {
          reason: `flip ${flip}`,
          force: true,
        });
        await w.from.pool.query('select pg_sleep(0.03)');
      }
    })();
    // Calls fail now and then, on both sides of the effect.
    w.to.behaviour.before = (request, response, next) => {
      const dice = randomInt(10);
      if (dice === 0) return void request.socket.destroy();
      if (dice === 1) {
        const end = response.end.bind(response) as (...args: unknown[]) => unknown;
        response.end = ((...args: unknown[]) => (request.socket.destroy(), end(...args))) as typeof response.end;
      }
      next();
    };
    // Copies come in order of the log, late, and some of them again.
    const events = (async () => {
      let at = 0;
      while (publishing || at < waiting.length) {
        const batch = waiting.slice(Math.max(0, at - randomInt(4)), at + 6);
        at = Math.min(waiting.length, at + 6);
        if (batch.length > 0) await arriveAsEvent(w, batch);
        await w.from.pool.query('select pg_sleep(0.01)');
      }
    })();
    await Promise.all(publishers);
    publishing = false;
    await Promise.all([flips, events]);
    await nothingOwed(w);
    for (const key of keys) await drain(w, key);

    const { rows: routes } = await w.from.pool.query<{ route: string; count: string }>(
      'select route, count(*) from turnout.stamp group by route order by route',
    );
    expect(routes.map(({ route }) => route)).toEqual(['event', 'rpc']);
    for (const key of keys)
      expect(await w.to.effects(key)).toEqual(Array.from({ length: perKey }, (_, index) => index + 1));
    expect((await w.to.pool.query('select from turnout.held')).rowCount).toBe(0);
    expect((await w.to.pool.query('select from turnout.alarm')).rowCount).toBe(0);
    // Every effect can be explained from its own row.
    const { rows: paths } = await w.to.pool.query(`select distinct i.path from turnout.inbox i order by i.path`);
    expect(paths).toEqual([{ path: 'event' }, { path: 'rpc' }]);
  });

  test('of an unordered switchover: each effect once', async () => {
    const w = await world();
    await w.sweeper.start();
    const seqs: string[] = [];
    for (let step = 1; step <= 30; step++) {
      if (step % 10 === 0)
        await setStage(w.from.database, 'orders', 'order-email', step % 20 === 0 ? 'rpc' : 'event', {
          reason: 'flip',
          force: true,
        });
      seqs.push(
        (
          await w.turnout.transaction((tx) => w.turnout.publish(tx, OrderPlaced, { orderId: `order-${step}`, step }))
        ).seq.toString(),
      );
    }
    await arriveAsEvent(w, seqs);
    await arriveAsEvent(w, seqs);
    await nothingOwed(w);
    expect((await w.to.effects()).toSorted((a, b) => a - b)).toEqual(
      Array.from({ length: 30 }, (_, index) => index + 1),
    );
  });

  test('a copy of an event that was sent again by call is a duplicate', async () => {
    const w = await world({ order: 'key' });
    await setStage(w.from.database, 'orders', 'order-email', 'event', { reason: 'test', force: true });
    const one = await w.turnout.transaction((tx) => w.turnout.publish(tx, OrderPlaced, { orderId: 'a', step: 1 }));
    await setStage(w.from.database, 'orders', 'order-email', 'rpc', { reason: 'back' });
    const two = await w.turnout.transaction((tx) => w.turnout.publish(tx, OrderChanged, { orderId: 'a', step: 2 }));
    expect(await two.reply(w.email)).toMatchObject({ status: 'done' });
    await arriveAsEvent(w, [one.seq.toString(), two.seq.toString()]);
    expect(await w.to.effects('a')).toEqual([1, 2]);
  });
});

describe('a rolling deploy', () => {
  /** What the old code does after its commit: it calls by itself, and knows nothing of Turnout. */
  const callDirectly = (w: World, orderId: string, step: number) =>
    fetch(w.to.url, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ orderId, step }),
    });

  /** The version before Turnout: it doesn't publish at all. */
  const before = async (w: World, orderId: string, step: number): Promise<void> => {
    await w.from.pool.query('insert into business values ($1, $2)', [orderId, step]);
    await callDirectly(w, orderId, step);
  };

  /** The version that publishes, for others, and still calls by itself: it doesn't declare the switchover. */
  const between = async (w: World, orderId: string, step: number): Promise<void> => {
    const undeclared = createTurnout({ source: 'orders', database: w.from.database });
    await undeclared.transaction(async (tx) => {
      await tx.query('insert into business values ($1, $2)', [orderId, step]);
      return undeclared.publish(tx, OrderPlaced, { orderId, step });
    });
    await callDirectly(w, orderId, step);
  };

  /** The version that has given its call to the switchover. */
  const after = async (w: World, orderId: string, step: number): Promise<void> => {
    await w.turnout.transaction(async (tx) => {
      await tx.query('insert into business values ($1, $2)', [orderId, step]);
      return w.turnout.publishAll(tx, [occurrence(OrderPlaced, { orderId, step })]);
    });
  };

  test.each([
    ['forward: from calls to the switchover, then to events', [before, between, after], ['rpc', 'event']],
    ['backward: from events to calls, then to the version before', [after, between, before], ['event', 'rpc']],
  ] as const)('%s: nothing twice, nothing lost', async (_, versions, plan) => {
    const w = await world();
    await w.sweeper.start();
    let step = 0;
    const stage = async (name: Stage) =>
      setStage(w.from.database, 'orders', 'order-email', name, { reason: 'deploy', force: true });
    const copies = async () => {
      const { rows } = await w.from.pool.query<{ seq: string }>('select outbox.seq::text as seq from turnout.outbox');
      // Each copy comes, also those that carry no route: they are observed only. `arriveAsEvent` does as consumers do.
      await arriveAsEvent(
        w,
        rows.map(({ seq }) => seq),
      );
    };
    for (const [index, name] of plan.entries()) {
      await stage(name);
      // Old and new run side by side, each taking a share.
      for (let pair = 0; pair + 1 < versions.length; pair++) {
        for (let round = 0; round < 6; round++)
          await versions[round % 2 === 0 ? pair : pair + 1]!(w, `order-${++step}`, step);
      }
      if (index === 0) await copies();
    }
    await nothingOwed(w);
    await copies();
    await copies();
    const { rows: business } = await w.from.pool.query<{ step: number }>('select step from business order by step');
    expect(business).toHaveLength(24);
    expect((await w.to.effects()).toSorted((a, b) => a - b)).toEqual(business.map((row) => row.step));
  });
});
