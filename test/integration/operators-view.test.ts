import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import {
  createRelay,
  defineConfig,
  defineConsumer,
  defineSwitchover,
  on,
  runConsumer,
  setStage,
  silentLogger,
} from 'turnout';
import type { TurnoutConfig } from 'turnout';
import { inMemoryBroker } from 'turnout/testing';
import { showCheck, showCleanup, showExplanation, showStatus } from '../../src/cli/commands/index.ts';
import { applyTopics } from '../../src/relay/index.ts';
import { rampBucket, redrive } from '../../src/switchover/index.ts';
import { waitFor } from '../support/index.ts';
import { consumer, emailSwitchover, OrderChanged, OrderPlaced, producer } from './fixtures/switchover-world.ts';

async function world() {
  const [from, to] = await Promise.all([producer(), consumer()]);
  const email = emailSwitchover(() => to.url);
  await from.register(email);
  const broker = inMemoryBroker();
  await applyTopics(broker.topics(), [OrderPlaced, OrderChanged]);
  const turnout = from.turnout([email]);
  const state = { broken: false };
  const handle = async (event: { data: { orderId: string } }, { tx }: { tx: { query: Function } }) => {
    if (state.broken) throw new Error('wrong template');
    await tx.query('insert into effects (order_id, step, how) values ($1, 1, $2)', [event.data.orderId, 'event']);
  };
  const definition = defineConsumer(to.database, {
    name: 'email',
    from: 'beginning',
    inSwitchover: [OrderPlaced],
    retry: { attempts: 1, firstDelayMs: 1, maxDelayMs: 1 },
    handlers: [on(OrderPlaced, handle)],
  });
  const relay = createRelay({ database: from.database, publisher: broker.publisher(), logger: silentLogger });
  const consuming = runConsumer(definition, { source: broker.source(), sweepEveryMs: 50 });
  onTestFinished(async () => {
    await turnout.close();
    await consuming.stop();
    await relay.stop();
    await to.close();
  });
  const config = (more: Partial<TurnoutConfig> = {}): TurnoutConfig =>
    defineConfig({
      source: 'orders',
      database: from.database,
      broker,
      events: [OrderPlaced],
      switchovers: [email],
      consumerDatabases: { email: to.database },
      ...more,
    });
  return {
    from,
    to,
    email,
    broker,
    state,
    definition,
    relay,
    consuming,
    config,
    async publish(orderId: string, declared = true): Promise<string> {
      const { rows } = await from.pool.query<{ id: string }>(
        `select p.id from turnout.publish_events('orders', $1::json, $2::text[], $3) p`,
        [
          JSON.stringify([{ type: OrderPlaced.name, version: 1, key: orderId, data: { orderId, step: 1 } }]),
          declared ? [email.name] : [],
          true,
        ],
      );
      return rows[0]!.id;
    },
    set: (stage: string, percent?: number) =>
      setStage(from.database, 'orders', email.name, stage, {
        reason: `to ${stage}`,
        force: true,
        ...(percent === undefined ? {} : { percent }),
      }),
  };
}

test('explain says from the rows why an event went this way, and what became of it', async () => {
  const the = await world();
  await the.relay.start();
  const called = await the.publish('a');
  const before = await showExplanation(the.config(), called);
  expect(before.data).toMatchObject({
    event: { id: called, key: 'a', source: 'orders' },
    consumers: [
      {
        consumer: 'email',
        switchover: 'order-email',
        route: 'rpc',
        epoch: 1,
        change: { stage: 'rpc', reason: 'test' },
        owed: { attempts: 0, lastError: null },
        atConsumer: { alarms: [] },
      },
    ],
  });
  expect(before.text).toContain('the call is owed still');
  const undeclared = await the.publish('a', false);
  expect((await showExplanation(the.config(), undeclared)).text).toContain('did not declare order-email');

  const { rows } = await the.from.pool.query<{ salt: string }>('select salt from turnout.switchover');
  const keys = Array.from({ length: 200 }, (_, index) => `k${index}`);
  const below = keys.find((key) => rampBucket(rows[0]!.salt, key) < 5_000)!;
  const above = keys.find((key) => rampBucket(rows[0]!.salt, key) >= 5_000)!;
  await the.set('ramp', 50);
  const [byEvent, byCall] = [await the.publish(below), await the.publish(above)];
  const ramped = await showExplanation(the.config(), byEvent);
  expect(ramped.text).toMatch(/stage ramp 50 %, set .* by .*: to ramp/);
  expect(ramped.text).toMatch(/its key is at [\d.]+ % of all keys: below 50 %, so event/);
  expect((await showExplanation(the.config(), byCall)).text).toContain('not below 50 %, so rpc');
  expect((await showExplanation(the.config({ consumerDatabases: {} }), byEvent)).text).toContain('`consumerDatabases`');

  await the.consuming.start();
  await waitFor(async () => (await showExplanation(the.config(), byEvent)).text.includes('applied'), {
    what: 'the effect',
  });
  expect((await showExplanation(the.config(), `email.${byEvent}`)).text).toContain('brought by the event');
  the.state.broken = true;
  const parked = await the.publish(below);
  await waitFor(async () => (await showExplanation(the.config(), parked)).text.includes('parked'), {
    what: 'the parking',
  });
  expect((await showExplanation(the.config(), parked)).text).toContain('parked after 1 attempts: wrong template');
  await the.set('rpc');
  await redrive(the.from.database, 'orders', 'order-email');
  expect((await showExplanation(the.config(), parked)).text).toContain('(a re-drive)');
  await expect(showExplanation(the.config(), '7d9f2c1e-0000-4000-8000-000000000000')).rejects.toMatchObject({
    code: 'TURNOUT_EVENT_UNKNOWN',
  });
});

test('check tells each finding with its number and what to do; cleanup lists code, endpoints and callers', async () => {
  const the = await world();
  const shadow = await showCheck(the.config(), 'order-email', undefined);
  expect(shadow.data).toMatchObject({ target: 'shadow', verdict: 'not-ready' });
  expect(shadow.text).toContain('Start it: `turnout consume email`.');
  await the.consuming.start();
  expect((await showCheck(the.config(), 'order-email', 'shadow')).data).toMatchObject({ verdict: 'ready' });
  await expect(showCheck(the.config(), 'order-email', 'sideways')).rejects.toMatchObject({
    code: 'TURNOUT_STAGE_UNKNOWN',
  });

  // An old service calls the endpoint, as it always has.
  await fetch(the.to.url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'user-agent': 'billing/1.2' },
    body: JSON.stringify({ orderId: 'x', step: 1 }),
  });
  await waitFor(async () => (await the.to.pool.query('select from turnout.unknown_caller')).rowCount === 1, {
    what: 'the caller',
  });
  const folder = mkdtempSync(join(tmpdir(), 'turnout-cleanup-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, 'moves.ts'), `export const move = defineSwitchover({ name: 'order-email' }); // move`);
  const cleanup = await showCleanup(the.config(), 'order-email', { days: 7, folder, cwd: folder });
  expect(cleanup.data).toMatchObject({
    stage: 'rpc',
    code: [{ path: 'moves.ts', line: 1, kind: 'definition' }],
    callers: [{ service: 'billing/1.2', calls: 1 }],
    endpoints: [{ unused: false, why: 'still called without Turnout' }],
  });
  expect(cleanup.text).toContain('delete nothing before it is done');
  const endpoints = async () =>
    (await showCleanup(the.config(), 'order-email', { days: 7, folder, cwd: folder })).data['endpoints'];
  await the.to.pool.query(`update turnout.unknown_caller set last_at = last_at - interval '8 days'`);
  await the.to.pool.query(`update turnout.endpoint_seen set unkeyed_at = unkeyed_at - interval '8 days'`);
  expect(await endpoints()).toMatchObject([{ unused: false, why: 'in use: stage rpc' }]);
  await the.set('event');
  await the.set('done');
  expect(await endpoints()).toMatchObject([
    { unused: false, why: expect.stringContaining('not known: watched since') },
  ]);
  await the.to.pool.query(`update turnout.endpoint_seen set first_at = first_at - interval '8 days', keyed_at = now()`);
  expect(await endpoints()).toMatchObject([{ unused: false, why: 'called by Turnout in the last 7 days' }]);
  await the.to.pool.query(`update turnout.endpoint_seen set keyed_at = keyed_at - interval '8 days'`);
  const free = await showCleanup(the.config(), 'order-email', { days: 7, folder, cwd: folder });
  expect(free.data).toMatchObject({ callers: [], endpoints: [{ unused: true }] });
  expect(free.text).toContain('no caller in 7 days: may be deleted');
  await expect(
    showCleanup(the.config(), 'order-email', { days: 7, folder: join(folder, 'nowhere'), cwd: folder }),
  ).rejects.toMatchObject({ code: 'TURNOUT_CONFIG_INVALID' });
});

test('status: an idle relay lives, a stopped one does not; what is not promised is said; consumers alone will do', async () => {
  const the = await world();
  const relayOf = async () => (await showStatus(the.config())).data['relay'];
  expect(await relayOf()).toMatchObject({ relays: 0, leading: false, unpublished: false });
  await the.relay.start();
  const standby = createRelay({ database: the.from.database, publisher: the.broker.publisher(), logger: silentLogger });
  onTestFinished(() => standby.stop());
  await standby.start();
  // It has never published anything.
  expect(await relayOf()).toMatchObject({ relays: 2, leading: true, lastRelay: null, unpublished: false });
  await the.publish('a');
  await waitFor(async () => ((await relayOf()) as { lastRelay: unknown }).lastRelay !== null, { what: 'a tick' });
  await waitFor(async () => !((await relayOf()) as { unpublished: boolean }).unpublished, { what: 'nothing left' });
  const text = (await showStatus(the.config())).text;
  expect(text).toMatch(/source orders: a relay leads.*, 1 stand by; nothing is to be published/);
  expect(text).toContain('newest check: none');
  expect(text).toContain('guardrails: seeing; nothing to watch in stage rpc');
  expect(text).toContain('NOT seen: a call at a wrapped endpoint');
  expect((await showStatus(the.config({ consumerDatabases: {} }))).text).toContain('guardrails: BLIND');
  await the.relay.stop();
  await standby.stop();
  await the.publish('b');
  expect(await relayOf()).toMatchObject({ relays: 0, leading: false, unpublished: true });
  expect((await showStatus(the.config())).text).toContain('NO RELAY leads; there is something to publish');

  await the.set('event');
  expect((await showStatus(the.config())).text).toMatch(/stage event.*(\n.*)*guardrails: seeing, inconclusive/);
  const off = { ...the.email, guardrails: { enabled: false } };
  expect((await showStatus(the.config({ switchovers: [off] }))).text).toContain('guardrails: switched off');

  const consumersOnly = defineConfig({ consumers: [the.definition], broker: the.broker });
  expect((await showStatus(consumersOnly)).text).toContain('consumer email: NOBODY consumes');
  await the.consuming.start();
  const { data, text: alone } = await showStatus(consumersOnly);
  expect(alone).toContain('consumer email: runs');
  expect(data).toMatchObject({ consumers: [{ consumer: 'email', running: true, mode: 'transaction' }] });
});

test('status says of a bridged endpoint what it can’t promise', async () => {
  const from = await producer();
  const parcels = defineSwitchover({
    name: 'parcels',
    consumer: 'email',
    order: 'none',
    rpc: emailSwitchover(() => '').rpc,
    endpoint: 'bridged',
  });
  await from.register(parcels);
  const { text } = await showStatus(
    defineConfig({ source: 'orders', database: from.database, events: [OrderPlaced], switchovers: [parcels] }),
  );
  expect(text).toContain('NOT promised: once in effect; nobody can change the endpoint');
});
