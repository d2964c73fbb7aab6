// Each part of Turnout on a login of its own, with one of the roles of migrations/roles and nothing else.
import { randomUUID } from 'node:crypto';
import { Client } from 'pg';
import type { Pool } from 'pg';
import { afterEach, describe, expect, onTestFinished, test } from 'vitest';
import { z } from 'zod';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { defineConsumer, runConsumer } from '../../src/consumer/index.ts';
import { requireMigrations } from '../../src/database/index.ts';
import { defineEvent, defineTopic, on } from '../../src/event/index.ts';
import type { TurnoutEvent } from '../../src/event/index.ts';
import { silentLogger } from '../../src/lifecycle/index.ts';
import type { Service } from '../../src/lifecycle/index.ts';
import { registerEvents } from '../../src/outbox/index.ts';
import { createRelay, outboxKeeper } from '../../src/relay/index.ts';
import { callerRecorder } from '../../src/switchover/endpoint/callers.ts';
import {
  callHeaders,
  checkSwitchover,
  consumerEvidence,
  createEndpoint,
  createdXidFinished,
  defineSwitchover,
  guardrails,
  latestCheck,
  recordCheck,
  recordSince,
  redrive,
  registerSwitchover,
  rpcSweeper,
  setStage,
  stepBack,
  switchoverHistory,
  switchoverStatus,
} from '../../src/switchover/index.ts';
import type { EvidenceQuestion, RpcAnswer, RpcCall } from '../../src/switchover/index.ts';
import { inMemoryBroker } from '../../src/testing/index.ts';
import { createTurnout } from '../../src/turnout.ts';
import { uniqueName, waitFor } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';

type Role = 'publisher' | 'relay' | 'consumer' | 'operator' | 'reader';

/** Both sides in one database, and tables of the services themselves that everybody may use. */
const template = {
  key: 'all roles',
  async prepare(url: string) {
    await migrated('producer', 'consumer', 'roles').prepare(url);
    const client = new Client({ connectionString: url });
    await client.connect();
    await client.query(`create table placed (order_id text); create table effect (order_id text, step integer, how text);
                        grant all on placed, effect to public`);
    await client.end();
  },
};

const orderSchema = z.object({ orderId: z.string(), step: z.number() });
type Order = z.infer<typeof orderSchema>;
const OrderPlaced = defineEvent({
  name: 'orders.order-placed',
  version: 1,
  topic: defineTopic({ name: 'orders', partitions: 1 }),
  schema: orderSchema,
  key: (order) => order.orderId,
});

const services: Service[] = [];
afterEach(async () => {
  await Promise.all(services.splice(0).map((service) => service.stop()));
});

async function started<Started extends Service>(service: Started): Promise<Started> {
  services.push(service);
  await service.start();
  return service;
}

async function world() {
  const created = await database({ template });
  const { url } = created;
  const owner = created.pool({ max: 2 });
  const logins: string[] = [];
  // Registered after the database, so it comes first: by then nothing in the cluster depends on the logins.
  onTestFinished(async () => {
    const admin = new Client({ connectionString: url });
    await admin.connect();
    for (const login of logins) await admin.query(`drop role ${login}`);
    await admin.end();
  });
  /** A pool of a login of its own that has one role, as `grant turnout_publisher to orders_service` gives it. */
  async function as(role: Role, max = 8): Promise<Pool> {
    const login = uniqueName(`test_${role}`);
    const password = randomUUID();
    await owner.query(`create role ${login} login password '${password}' in role turnout_${role}`);
    logins.push(login);
    const own = new URL(url);
    own.username = login;
    own.password = password;
    return created.pool({ connectionString: own.href, max });
  }
  /** What an operator does before anything else. */
  async function prepared(order: 'key' | 'none' = 'key', rpc?: Call) {
    const operator = pgDatabase(await as('operator', 2));
    const switchover = switchoverOf(order, rpc);
    await registerEvents(operator, 'orders', [OrderPlaced]);
    await registerSwitchover(operator, 'orders', switchover, 'test');
    await recordSince(operator, 'orders', switchover.name, { orders: [0n] });
    return { operator, switchover };
  }
  return { url, owner, as, prepared };
}

type Call = (event: TurnoutEvent<Order>, call: RpcCall) => Promise<RpcAnswer>;

const applied: Call = async () => ({ status: 200, headers: { 'turnout-outcome': 'applied' }, body: {} });

/** Answers like a gate that has not seen number 1 until it is sent. */
function early(calls: number[]): Call {
  return async (event, { headers }) => {
    const [, number] = headers['turnout-key-number']!.split('.').map(Number);
    calls.push(event.data.step);
    const last = calls.includes(1) ? 99 : 0;
    return number! <= last + 1
      ? { status: 200, headers: { 'turnout-outcome': 'applied' }, body: {} }
      : { status: 425, headers: { 'turnout-error': 'TURNOUT_EFFECT_EARLY', 'turnout-last-number': '1.0' }, body: {} };
  };
}

const switchoverOf = (order: 'key' | 'none', rpc: Call = applied) =>
  defineSwitchover({ name: 'order-points', consumer: 'loyalty', order, timeoutMs: 2_000, rpc: [on(OrderPlaced, rpc)] });

/** What came of a statement: the SQLSTATE if it was refused. */
const outcomeOf = (pool: Pool, statement: string): Promise<string> =>
  pool.query(statement).then(
    () => 'allowed',
    (error: { code: string }) => error.code,
  );
const insufficientPrivilege = '42501';

describe('turnout_publisher', () => {
  test('publishes from TypeScript and SQL, and makes its calls, the missing ones before them too', async () => {
    const w = await world();
    const calls: number[] = [];
    const { switchover } = await w.prepared('key', early(calls));
    const pool = await w.as('publisher');
    const db = pgDatabase(pool);
    await requireMigrations(db, 'producer');
    // By SQL first: nobody has called for it when the next one of its key is called.
    await pool.query(
      `select turnout.publish('orders', 'orders.order-placed', 1, 'a', '{"orderId": "a", "step": 1}', switchovers => '{order-points}')`,
    );
    const turnout = createTurnout({ source: 'orders', database: db, switchovers: [switchover] });
    const published = await turnout.transaction(async (tx) => {
      await tx.query("insert into placed values ('a')");
      await turnout.lockKeys(tx, OrderPlaced, ['a', 'b']);
      return turnout.publish(tx, OrderPlaced, { orderId: 'a', step: 2 });
    });
    expect(await published.reply(switchover)).toMatchObject({ route: 'rpc', status: 'done' });
    expect(calls).toEqual([2, 1, 2]);

    const client = await pool.connect();
    await client.query('begin');
    const owed = await turnout.publish(client, OrderPlaced, { orderId: 'b', step: 1 });
    await client.query('commit');
    client.release();
    await turnout.deliver(owed);
    await turnout.close();
    expect((await w.owner.query('select from turnout.rpc_delivery')).rowCount).toBe(0);
    expect((await w.owner.query('select from turnout.outbox')).rowCount).toBe(3);
  });

  test('notes a call that failed', async () => {
    const w = await world();
    const { switchover } = await w.prepared('none', async () => ({ status: 503, headers: {}, body: {} }));
    const db = pgDatabase(await w.as('publisher'));
    const turnout = createTurnout({ source: 'orders', database: db, switchovers: [switchover] });
    const published = await turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, { orderId: 'a', step: 1 }));
    expect(await published.reply(switchover)).toMatchObject({ status: 'pending' });
    await turnout.close();
    const { rows } = await w.owner.query('select attempts, last_error from turnout.rpc_delivery');
    expect(rows).toEqual([{ attempts: 1, last_error: expect.stringContaining('503') }]);
  });
});

describe('turnout_relay', () => {
  test('publishes, takes over from another process of its login, and keeps the outbox', async () => {
    const w = await world();
    await w.prepared();
    const broker = inMemoryBroker();
    await broker.topics().create([{ name: 'orders', partitions: 1 }]);
    const pool = await w.as('relay');
    const db = pgDatabase(pool);
    const publish = (step: number): Promise<unknown> =>
      w.owner.query(`select turnout.publish('orders', 'orders.order-placed', 1, 'a', $1)`, [
        JSON.stringify({ orderId: 'a', step }),
      ]);
    await publish(1);

    // A leader that does nothing.
    const stuck = await pool.connect();
    const ended = new Promise<void>((resolve) => stuck.on('error', () => resolve()));
    await stuck.query(`select pg_advisory_lock(hashtext('turnout.relay'), 0)`);
    const relay = createRelay({ database: db, publisher: broker.publisher(), takeoverMs: 100, logger: silentLogger });
    await started(relay);
    await ended;
    stuck.release(true);
    await waitFor(() => relay.counts().published === 1);
    expect(relay.counts().takeovers).toBe(1);
    // Its last record is compared with the outbox when it starts again; a backlog is read through a cursor.
    await relay.stop();
    await publish(2);
    await publish(3);
    const again = await started(
      createRelay({ database: db, publisher: broker.publisher(), pageSize: 1, logger: silentLogger }),
    );
    await waitFor(() => again.counts().published === 2);
    await again.stop();

    // The first partition is full, published and old.
    await w.owner.query(`alter sequence turnout.outbox_seq_seq restart with 1000001`);
    await w.owner.query(`select nextval('turnout.outbox_seq_seq')`);
    const warned: string[] = [];
    const warn = (message: string, fields?: object): void => void warned.push(`${message} ${JSON.stringify(fields)}`);
    const keeper = outboxKeeper({ database: db, retentionMs: 0, everyMs: 50, logger: { ...silentLogger, warn } });
    await started(keeper);
    await waitFor(async () => (await w.owner.query('select from turnout.outbox')).rowCount === 0);
    await waitFor(
      async () => (await w.owner.query(`select to_regclass('turnout.outbox_00000000') as it`)).rows[0].it === null,
    );
    expect(warned).toEqual([]);
  });

  test('makes the calls that nobody else makes', async () => {
    const w = await world();
    const calls: number[] = [];
    const { switchover } = await w.prepared('key', early(calls));
    await w.owner.query(
      `select turnout.publish('orders', 'orders.order-placed', 1, 'a', json_build_object('orderId', 'a', 'step', n), switchovers => '{order-points}')
         from generate_series(1, 2) n`,
    );
    // Number 1 has its row no more, and its effect never came: it is read by its stamp.
    await w.owner.query('delete from turnout.rpc_delivery where number = 1');
    // One that a process had promised to make.
    await w.owner.query('update turnout.rpc_delivery set due_at = null');
    const hasty = { ...switchover, timeoutMs: 100 };
    const db = pgDatabase(await w.as('relay'));
    const sweeper = await started(rpcSweeper({ source: 'orders', database: db, switchovers: [hasty], pollMs: 50 }));
    await waitFor(() => sweeper.counters().redriven === 1);
    expect(calls).toEqual([2, 1, 2]);
    expect((await w.owner.query('select from turnout.rpc_delivery')).rowCount).toBe(0);
  });
});

describe('turnout_consumer', () => {
  test('consumes, ends a zombie of its login, and makes inbox partitions', { timeout: 30_000 }, async () => {
    const w = await world();
    await w.prepared();
    await setStage(pgDatabase(w.owner), 'orders', 'order-points', 'event', { reason: 'test', force: true });
    const broker = inMemoryBroker();
    await broker.topics().create([{ name: 'orders', partitions: 1 }]);
    const relay = createRelay({
      database: pgDatabase(await w.as('relay')),
      publisher: broker.publisher(),
      logger: silentLogger,
    });
    await started(relay);
    // Of a week for which the inbox has no partition.
    await w.owner.query(`
      select turnout.publish('orders', 'orders.order-placed', 1, 'a', '{"orderId": "a", "step": 1}', switchovers => '{order-points}');
      update turnout.outbox set occurred_at = occurred_at - interval '20 days'`);
    const pool = await w.as('consumer');
    const loyalty = defineConsumer(pgDatabase(pool), {
      name: 'loyalty',
      from: 'beginning',
      inSwitchover: [OrderPlaced],
      graceMs: 500,
      retry: { attempts: 2, firstDelayMs: 1, maxDelayMs: 1 },
      handlers: [
        on(OrderPlaced, async (event, { tx }) => {
          if (event.data.step === 2) throw new Error('this one can’t be had');
          await tx.query('insert into effect values ($1, $2, $3)', [event.data.orderId, event.data.step, 'event']);
        }),
      ],
    });
    // The owner before it, in the middle of something.
    await pool.query(`insert into turnout.assignment (consumer, topic, partition) values ('loyalty', 'orders', 0)`);
    const zombie = await pool.connect();
    const ended = new Promise<void>((resolve) => zombie.on('error', () => resolve()));
    await zombie.query(
      `begin; select pg_advisory_xact_lock_shared(7473, hashtext('loyalty/orders/0')) from turnout.assignment for share`,
    );
    await started(runConsumer(loyalty, { source: broker.source(), sweepEveryMs: 50 }));
    await ended;
    zombie.release(true);
    const effects = async (): Promise<number[]> =>
      (await w.owner.query<{ step: number }>('select step from effect order by step')).rows.map((row) => row.step);
    await waitFor(async () => (await effects()).length === 1, { deadlineMs: 15_000 });

    // One is parked, its successor waits; an operator's skip lets it go on, and the sweep drains.
    for (const step of [2, 3]) {
      await w.owner.query(
        `select turnout.publish('orders', 'orders.order-placed', 1, 'a', $1, switchovers => '{order-points}')`,
        [JSON.stringify({ orderId: 'a', step })],
      );
    }
    await waitFor(async () => (await w.owner.query('select from turnout.held')).rowCount === 2);
    await w.owner.query(`delete from turnout.held where number = 2; update turnout.gate set last_number = 2`);
    await waitFor(async () => (await effects()).length === 2);
    expect(await effects()).toEqual([1, 3]);
  });

  test('runs a wrapped endpoint, alarms and halted keys included', async () => {
    const w = await world();
    const pool = await w.as('consumer');
    const endpointOf = (order: 'key' | 'none') =>
      createEndpoint({ consumer: 'loyalty', database: pgDatabase(pool), order, retentionMs: 86_400_000 });
    const ordered = endpointOf('key');
    const unordered = endpointOf('none');
    const call = async (number: number | undefined, time = new Date(), status = 200): Promise<string> => {
      const event = {
        id: randomUUID(),
        type: 'orders.order-placed',
        version: 1,
        source: 'orders',
        topic: 'orders',
        key: 'a',
        time,
        data: {},
        headers: {},
      };
      const headers = callHeaders('loyalty', event, number === undefined ? undefined : { generation: 1, number });
      const answer = await (number === undefined ? unordered : ordered).answer(
        { original: {}, headers, body: async () => ({}) },
        async () => {
          await pool.query("insert into effect values ('a', 1, 'rpc')");
          return { status, headers: {}, body: Buffer.from('') };
        },
      );
      if (answer.kind === 'pass') return 'pass';
      return answer.headers['turnout-outcome']?.toString() ?? answer.headers['turnout-error']!.toString();
    };
    expect(await call(1)).toBe('applied');
    expect(await call(2, new Date(), 422)).toBe('rejected');
    expect(await call(9)).toBe('TURNOUT_EFFECT_EARLY');
    expect(await call(undefined, new Date(0))).toBe('skipped');
    expect(await call(2)).toBe('TURNOUT_GATE_HALTED');
    expect(await call(3)).toBe('TURNOUT_GATE_HALTED');
    const { rows } = await w.owner.query('select kind from turnout.alarm order by id');
    expect(rows).toEqual([{ kind: 'skipped-old' }, { kind: 'unknown-repeat' }]);

    const operator = await w.as('operator', 1);
    await operator.query(`select turnout.resume_key('loyalty', 'orders', 'orders', 'a', 'looked at by hand')`);
    await operator.query(`select turnout.accept_repeat('loyalty', 'loyalty.unheard-of', 'skip', 'looked at by hand')`);
    expect(await call(3)).toBe('applied');
  });
});

describe('turnout_operator', () => {
  test('registers, changes stages under its own name, and reads', async () => {
    const w = await world();
    const { operator, switchover } = await w.prepared();
    // Transactions of other databases of the server count too.
    await waitFor(() => createdXidFinished(operator, 'orders', switchover.name));
    await expect(setStage(operator, 'orders', switchover.name, 'event', { reason: 'early' })).rejects.toMatchObject({
      code: 'TURNOUT_CHECKS_MISSING',
    });
    await setStage(operator, 'orders', switchover.name, 'event', { reason: 'go', force: true });
    await setStage(operator, 'orders', switchover.name, 'rpc', { reason: 'back' });
    const history = await switchoverHistory(operator, 'orders', switchover.name);
    expect(history.map(({ to }) => to)).toEqual(['rpc', 'event', 'rpc']);
    for (const { actor } of history) expect(actor).toMatch(/^test_operator/);
    expect(await switchoverStatus(operator, 'orders')).toHaveLength(1);
    expect(await redrive(operator, 'orders', switchover.name)).toBe(0);
    await recordCheck(operator, 'orders', switchover.name, { stage: 'done', verdict: 'not-ready', findings: [] });
    expect(await latestCheck(operator, 'orders', switchover.name)).toMatchObject({
      actor: expect.stringMatching(/^test_operator/),
    });
    // A guardrail runs with the relay, which may do no more than that.
    await setStage(operator, 'orders', switchover.name, 'ramp', { percent: 5, reason: 'go', force: true });
    const relay = pgDatabase(await w.as('relay'));
    await stepBack(relay, 'orders', switchover.name, 'rpc', { reason: 'parked events' });
    expect((await switchoverHistory(operator, 'orders', switchover.name)).at(-1)).toMatchObject({
      to: 'rpc',
      automatic: true,
      actor: expect.stringMatching(/^test_relay/),
    });
    // Done, by who owns none of the tables.
    await setStage(operator, 'orders', switchover.name, 'event', { reason: 'go', force: true });
    await setStage(operator, 'orders', switchover.name, 'done', { reason: 'go', force: true });
  });
});

describe('turnout_reader', () => {
  test('reads states and histories', async () => {
    const w = await world();
    const { switchover } = await w.prepared();
    const reader = pgDatabase(await w.as('reader'));
    expect(await switchoverStatus(reader, 'orders', switchover.name)).toMatchObject([{ stage: 'rpc', owedCalls: 0 }]);
    expect(await switchoverHistory(reader, 'orders', switchover.name)).toHaveLength(1);
    expect((await reader.query('select from turnout.relay_tick')).rowCount).toBe(0);
    expect((await reader.query('select from turnout.inbox')).rowCount).toBe(0);
  });
});

describe('checks and guardrails', () => {
  test('the relay looks and steps back, the reader gives evidence, the consumer counts callers, the operator sees alarms', async () => {
    const w = await world();
    const { operator, switchover } = await w.prepared('none');
    const [relay, reader, own] = await Promise.all([w.as('relay', 3), w.as('reader', 3), w.as('consumer', 2)]);
    const recorder = callerRecorder(pgDatabase(own), 'loyalty');
    recorder.note({ keyed: false, endpoint: 'POST /points', service: 'billing', address: '10.0.0.7' });
    await recorder.flush();
    await own.query(`insert into turnout.alarm (consumer, kind, detail) values ('loyalty', 'sequence-hole', '{}')`);
    const evidence = (question: EvidenceQuestion) => consumerEvidence(pgDatabase(reader), 'loyalty', question);
    expect(await evidence({ shadow: true })).toMatchObject({
      callers: [{ service: 'billing', calls: 1 }],
      alarms: [{ kind: 'sequence-hole', count: 1 }],
    });
    await checkSwitchover({ source: 'orders', database: operator, name: switchover.name, target: 'event', evidence });
    await setStage(operator, 'orders', switchover.name, 'event', { reason: 'go', force: true });
    await started(
      guardrails({
        source: 'orders',
        database: pgDatabase(relay),
        switchovers: [{ ...switchover, guardrails: { whenBlind: 'step-back', blindAfter: 2 } }],
        view: () => ({ evidence: () => Promise.reject(new Error('no route')) }),
        everyMs: 20,
      }),
    );
    await waitFor(async () => (await switchoverHistory(operator, 'orders', switchover.name)).length === 3, {
      what: 'the step back',
    });
    const { rows } = await operator.query<{ seen: number }>(
      `select turnout.see_alarms('loyalty', 1000, 'looked at') as seen`,
    );
    expect(rows).toEqual([{ seen: 1 }]);
    expect((await evidence({})).alarms).toEqual([]);
  });
});

describe('is refused', () => {
  const publish = `select turnout.publish('orders', 'orders.order-placed', 1, 'a', '{}')`;
  const redriveAll = `select turnout.redrive('orders', 'order-points')`;
  const promote = `select turnout.set_stage('orders', 'order-points', 'event', 'test', force => true)`;
  const resume = `select turnout.resume_key('loyalty', 'orders', 'orders', 'a', 'test')`;
  const record = `select turnout.record_outcome('loyalty', 'k', now(), gen_random_uuid(), 't', 'orders', 'orders', null, null, null, 'rpc', 'applied', null, null, null, 1)`;
  const statements: Record<Role, string[]> = {
    publisher: [
      'select from turnout.outbox',
      'select from turnout.stamp',
      'select from turnout.relay_tick',
      `insert into turnout.rpc_delivery (effect_key) values ('x')`,
      'update turnout.key_number set number = 0',
      `update turnout.switchover set stage = 'event'`,
      `select turnout.register_events('others', '[]', '[]')`,
      `select turnout.record_since('orders', 'order-points', '{}')`,
      'select turnout.make_outbox_partitions()',
      promote,
      `select turnout.step_back('orders', 'order-points', 'rpc', 'test')`,
      redriveAll,
      resume,
      record,
    ],
    relay: [
      publish,
      promote,
      redriveAll,
      'delete from turnout.outbox',
      'truncate turnout.outbox_00000000',
      'update turnout.relay_tick set tick = 0',
      'delete from turnout.relay_tick',
      'update turnout.source set generation = 2',
      'update turnout.topic set partitions = 2',
      record,
    ],
    consumer: [
      publish,
      promote,
      resume,
      'select from turnout.outbox',
      'select from turnout.switchover',
      'delete from turnout.inbox',
      `insert into turnout.inbox (consumer) values ('x')`,
      `update turnout.inbox set outcome = 'applied'`,
      'update turnout.gate set last_number = 9, halted = null',
      'delete from turnout.gate',
      'delete from turnout.alarm',
      'delete from turnout.position',
    ],
    operator: [
      publish,
      record,
      'delete from turnout.rpc_delivery',
      'delete from turnout.switchover_history',
      `update turnout.switchover set stage = 'event'`,
      'update turnout.gate set halted = null',
      'delete from turnout.held',
    ],
    reader: [
      publish,
      promote,
      resume,
      record,
      'delete from turnout.alarm',
      'insert into turnout.relay_shard values (0)',
    ],
  };

  test.each(Object.entries(statements) as [Role, string[]][])('%s what is not its own', async (role, each) => {
    const w = await world();
    await w.prepared();
    const pool = await w.as(role, 1);
    for (const statement of [
      ...each,
      'create table turnout.mine ()',
      'drop table turnout.outbox',
      'select from turnout.migration for update',
    ])
      expect(await outcomeOf(pool, statement), statement).toBe(insufficientPrivilege);
  });

  test('everybody without a role', async () => {
    const w = await world();
    const pool = await w.as('reader', 1);
    const { rows } = await pool.query<{ login: string }>('select current_user::text as login');
    await w.owner.query(`revoke turnout_reader from ${rows[0]!.login}`);
    for (const statement of ['select from turnout.switchover', publish, promote])
      expect(await outcomeOf(pool, statement), statement).toBe(insufficientPrivilege);
  });
});

test('an operator watches the tables that it owns, and no others', async () => {
  const w = await world();
  const pool = await w.as('operator', 1);
  const { rows } = await pool.query<{ login: string }>('select current_user::text as login');
  await w.owner.query(`create schema app authorization ${rows[0]!.login}; create table public.foreign_mail (id int)`);
  await pool.query('create table app.mail (id int)');
  await pool.query(`select turnout.watch_table('app.mail')`);
  expect((await pool.query('select name from turnout.watched_table')).rows).toEqual([{ name: 'app.mail' }]);
  await pool.query(`select turnout.unwatch_table('app.mail')`);
  expect(await outcomeOf(pool, `select turnout.watch_table('public.foreign_mail')`)).toBe(insufficientPrivilege);
  await w.owner.query('drop schema app cascade');
});

test('every function is granted to a role, or is only called by others', async () => {
  const { owner } = await world();
  const { rows } = await owner.query<{ name: string }>(`
    select p.proname::text as name from pg_proc p
     where p.pronamespace = 'turnout'::regnamespace
       and not exists (select from unnest(array['publisher', 'relay', 'consumer', 'operator', 'reader']) r
                        where has_function_privilege('turnout_' || r, p.oid, 'execute'))
     order by p.proname`);
  expect(rows.map((row) => row.name)).toEqual([
    'alarm_once',
    'bad_header',
    'change_stage',
    'check_begun',
    'close_calls',
    'consumed_snapshot',
    'count_sequence',
    'decide_effect',
    'enter_effect',
    'held_that_can_go_on',
    'is_reserved_header',
    'need_of_outbox_partition',
    'pass_spare_numbers',
    'percent_decode',
    'plan_event',
    'ramp_bucket',
    'refuse_event',
    'route_for',
    'route_of',
    'set_aside',
    'stage_problem',
    'stage_problems',
    'stage_rank',
  ]);
});
