// What decides about one switchover is its own: a consumer may have several, and they may be moved at the same time by several people.
import { randomUUID } from 'node:crypto';
import { beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import {
  checkSwitchover,
  consumerEvidence,
  defineEvent,
  defineSwitchover,
  defineTopic,
  guardrails,
  migrate,
  on,
  registerEvents,
  registerSwitchover,
  setStage,
  shadowReport,
  switchoverHistory,
} from 'turnout';
import type { ConsumerEvidence, EvidenceQuestion, SwitchoverCheck } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import type { Pool } from 'pg';
import { z } from 'zod';
import { breached, latestCheck, recordSince, stepBack, unreadMs } from '../../src/switchover/index.ts';
import { waitFor } from '../support/index.ts';
import { database } from '../support/vitest.ts';

const orders = defineTopic({ name: 'orders', partitions: 2 });
const eventOf = (name: string) =>
  defineEvent({ name, version: 1, topic: orders, schema: z.object({ id: z.string() }), key: ({ id }) => id });
const [Placed, Cancelled] = [eventOf('orders.placed'), eventOf('orders.cancelled')];
const call = () => ({ status: 503, headers: {}, body: {} });
const placed = defineSwitchover({ name: 'placed', consumer: 'email', order: 'none', rpc: [on(Placed, call)] });
const cancelled = defineSwitchover({ name: 'cancelled', consumer: 'email', order: 'none', rpc: [on(Cancelled, call)] });

/** A broker that says what one says whose consumer runs and has read all. */
const broker = {
  running: async () => true,
  bounds: async () => [{ partition: 0, low: 0n, high: 5n }],
  committed: async () => new Map([[0, 5n]]),
};

let pool: Pool;
let db: ReturnType<typeof pgDatabase>;
const template = {
  key: 'one-switchover',
  prepare: async (url: string) => {
    const { Pool: PgPool } = await import('pg');
    const own = new PgPool({ connectionString: url });
    await migrate(pgDatabase(own), ['producer', 'consumer']);
    await registerEvents(pgDatabase(own), 'orders', [Placed, Cancelled]);
    for (const each of [placed, cancelled]) {
      await registerSwitchover(pgDatabase(own), 'orders', each, 'test');
      await recordSince(pgDatabase(own), 'orders', each.name, { orders: [0n, 0n] });
    }
    await own.query('select turnout.make_inbox_partition(clock_timestamp())');
    await own.end();
  },
};

async function world() {
  pool = (await database({ template })).pool({ max: 8 });
  db = pgDatabase(pool);
}

const force = (name: string, stage: string, percent?: number) =>
  setStage(db, 'orders', name, stage, { reason: 'test', force: true, ...(percent === undefined ? {} : { percent }) });
const check = (
  name: string,
  target: 'ramp' | 'event' | 'done',
  evidence: (question: EvidenceQuestion) => Promise<ConsumerEvidence> = (question) =>
    consumerEvidence(db, 'email', question),
) => checkSwitchover({ source: 'orders', database: db, name, target, broker, evidence });
const verdictsOf = ({ findings }: SwitchoverCheck) =>
  Object.fromEntries(findings.map(({ check: name, verdict }) => [name, verdict]));
const of = (type: string, more: EvidenceQuestion = {}) =>
  consumerEvidence(db, 'email', { source: 'orders', topic: 'orders', eventTypes: [type], ...more });

/** What stage shadow has found for events of a type. */
async function shadowed(type: string, count: number, { epoch = 2, variant = '', mismatched = 0 } = {}) {
  const keys = Array.from({ length: count }, () => `email.${randomUUID()}`);
  const arrivals = keys.map((effectKey, offset) => ({
    effectKey,
    eventType: type,
    source: 'orders',
    topic: 'orders',
    partition: 0,
    offset,
    epoch,
    occurredAt: new Date().toISOString(),
    bucket: 1,
    sample: 10_000,
  }));
  await pool.query(`select turnout.record_shadow_arrivals('email', $1)`, [JSON.stringify(arrivals)]);
  const gathered = {
    calls: keys.map((effectKey) => ({ effectKey, eventType: type, ago: 0, bucket: 1, sample: 10_000 })),
    counts: [{ eventType: type, variant, matched: count - mismatched, mismatched, failed: 0, skipped: 0 }],
    mismatches:
      mismatched === 0
        ? []
        : [
            {
              fingerprint: 'f',
              kind: 'writes',
              eventType: type,
              paths: ['writes'],
              count: mismatched,
              effectKey: keys[0],
              expected: {},
              actual: {},
            },
          ],
  };
  await pool.query(`select turnout.record_shadow('email', '', $1)`, [JSON.stringify(gathered)]);
}

const outcomes = (type: string, count: number, { path = 'event', outcome = 'applied', source = 'orders' } = {}) =>
  pool.query(
    `insert into turnout.inbox (consumer, effect_key, occurred_at, event_id, event_type, source, path, outcome)
       select 'email', 'email.' || gen_random_uuid(), clock_timestamp(), gen_random_uuid(), $1, $2, $3, $4 from generate_series(1, $5)`,
    [type, source, path, outcome, count],
  );
const held = (type: string, reason: string, count: number, age = '0 s') =>
  pool.query(
    `insert into turnout.held (consumer, effect_key, reason, source, topic, partition, "offset", message, held_at)
       select 'email', 'email.' || gen_random_uuid(), $2, 'orders', 'orders', 0, n, jsonb_build_object('headers', jsonb_build_object('ce_type', $1::text)),
              clock_timestamp() - $4::interval from generate_series(1, $3) n`,
    [type, reason, count, age],
  );
const fine = { inStageMs: 7_200_000, unreadMs: 0, downMs: 0, failedReadings: 0 };

describe('two switchovers of one consumer', () => {
  beforeAll(world);

  test('what shadow has found for one proves nothing of the other', async () => {
    await force('placed', 'shadow');
    await force('cancelled', 'shadow');
    await shadowed('orders.cancelled', 400, { variant: 'gift' });
    await pool.query(
      `select turnout.record_shadow('email', '', '{"calls": [], "counts": [], "mismatches": [], "variants": ["gift"]}')`,
    );
    const other = await check('placed', 'event');
    expect([other.verdict, verdictsOf(other)['deliveries']]).toEqual(['inconclusive', 'inconclusive']);
    expect(verdictsOf(other)).not.toHaveProperty('variant gift');
    await expect(setStage(db, 'orders', 'placed', 'event', { reason: 'green' })).rejects.toMatchObject({
      code: 'TURNOUT_CHECKS_NOT_READY',
    });
    expect((await check('cancelled', 'event')).verdict).toBe('ready');
  });

  test('a waiver of a group does not forgive what another one differs in at the same places', async () => {
    await shadowed('orders.placed', 300, { mismatched: 10 });
    await shadowed('orders.cancelled', 300, { mismatched: 20 });
    const { decisions, groups } = (await of('orders.placed', { shadow: true })).shadow!;
    expect([decisions.compared, decisions.mismatched, groups.map(({ count }) => count)]).toEqual([300, 10, [10]]);
    expect((await shadowReport(db, 'email')).groups.map(({ count }) => count)).toEqual([30]);
  });

  test('a report of all counts each event type from its own newest stage change, whatever the epochs of others are', async () => {
    await shadowed('orders.placed', 5, { epoch: 40 });
    const { deliveries } = await shadowReport(db, 'email');
    expect(deliveries.arrived).toBeGreaterThanOrEqual(705);
  });

  test('what an earlier stay in shadow has found does not count for a new one', async () => {
    await pool.query(`update turnout.shadow_call set called_at = called_at - interval '1 minute'`);
    await pool.query(`update turnout.shadow_arrival set arrived_at = arrived_at - interval '1 minute'`);
    await force('cancelled', 'rpc');
    await force('cancelled', 'shadow');
    const again = await check('cancelled', 'event');
    expect(verdictsOf(again)['deliveries']).toBe('inconclusive');
  });

  test('effects, refusals, parked events, alarms and failures are those of its event types and source', async () => {
    await force('placed', 'ramp', 10);
    await pool.query(`update turnout.switchover_history set at = at - interval '30 minutes'`);
    await outcomes('orders.cancelled', 30);
    await outcomes('orders.placed', 30, { source: 'elsewhere' });
    await held('orders.cancelled', 'parked', 2);
    await pool.query(
      `insert into turnout.alarm (consumer, kind, detail) values ('email', 'unknown-repeat', '{"source": "orders", "eventType": "orders.cancelled"}')`,
    );
    const before = verdictsOf(await check('placed', 'event'));
    expect(before).toMatchObject({ effects: 'inconclusive', parked: 'ready', alarms: 'ready' });
    await outcomes('orders.placed', 19);
    expect(verdictsOf(await check('placed', 'event'))['effects']).toBe('inconclusive');
    await outcomes('orders.placed', 1);
    expect(verdictsOf(await check('placed', 'event'))['effects']).toBe('ready');
    await outcomes('orders.placed', 60, { outcome: 'rejected' });
    expect(verdictsOf(await check('placed', 'event'))['rejected']).toBe('not-ready');
    await pool.query(
      `insert into turnout.alarm (consumer, kind, detail) values ('email', 'sequence-hole', '{"source": "orders", "topic": "orders"}')`,
    );
    expect(verdictsOf(await check('placed', 'event'))['alarms']).toBe('not-ready');
  });

  test('a guardrail sees a ramp of which all is parked beside thousands of other effects', async () => {
    await outcomes('orders.cancelled', 20_000);
    await outcomes('orders.placed', 20_000, { path: 'rpc' });
    await held('orders.placed', 'parked', 90);
    const evidence = await of('orders.placed');
    expect(breached({ ...fine, evidence }).breaches.map(({ rule }) => rule)).toContain('failed');
    expect(evidence).toMatchObject({ parked: 90, heldCount: 90, of: { eventTypes: ['orders.placed'] } });
    expect(breached({ ...fine, evidence: await of('orders.cancelled') }, { maxAlarms: false }).verdict).toBe('fine');
    // Of what is asked for so many are counted, not of what lies before it.
    const { rows } = await pool.query(
      `select outcome, effects::int from turnout.recent_outcomes('email', '1 hour', 50, 'orders', '{orders.placed}') where path = 'event'`,
    );
    expect(rows.reduce((sum, each) => sum + each.effects, 0)).toBe(50);
  });

  test('an event that is held early counts by its age, in checks and for a guardrail', async () => {
    expect((await of('orders.cancelled')).waitingMs).toBe(0);
    await held('orders.cancelled', 'early', 3, '6 minutes');
    expect((await of('orders.placed')).waitingMs).toBe(0);
    const evidence = await of('orders.cancelled');
    expect(evidence.waitingMs).toBeGreaterThanOrEqual(360_000);
    const rules = { maxAlarms: false } as const;
    expect(breached({ ...fine, evidence }, rules).breaches).toMatchObject([{ rule: 'held', limit: 300_000 }]);
    expect(breached({ ...fine, evidence }, { ...rules, maxHeldMs: false }).verdict).toBe('fine');
    expect(verdictsOf(await check('cancelled', 'done'))['held']).toBe('not-ready');
    expect(verdictsOf(await check('placed', 'done'))['held']).toBe('ready');
  });

  test('evidence that drops a part of the question is none', async () => {
    for (const part of ['source', 'topic', 'eventTypes', 'withinMs']) {
      const found = await check('placed', 'event', (question) =>
        consumerEvidence(db, 'email', Object.fromEntries(Object.entries(question).filter(([name]) => name !== part))),
      );
      expect(found.findings.find(({ check: name }) => name === 'parked')).toMatchObject({
        verdict: 'inconclusive',
        why: expect.stringContaining('not asked for'),
      });
    }
  });
});

describe('a stage that was changed meanwhile', () => {
  test('is not promoted by a check of the stage before, nor by who has seen that', async () => {
    await world();
    await force('placed', 'ramp', 5);
    await pool.query(`update turnout.switchover_history set at = at - interval '30 minutes'`);
    await outcomes('orders.placed', 200);
    const { verdict, findings } = await check('placed', 'event', async (question) => {
      // A guardrail, while evidence is on its way.
      const evidence = await consumerEvidence(db, 'email', question);
      await stepBack(db, 'orders', 'placed', 'rpc', { reason: 'guardrail: parked' });
      return evidence;
    });
    expect(findings.filter((each) => each.verdict !== 'ready')).toEqual([]);
    expect(verdict).toBe('ready');
    expect(await latestCheck(db, 'orders', 'placed', 'event')).toMatchObject({ verdict: 'ready', current: false });
    await expect(setStage(db, 'orders', 'placed', 'event', { reason: 'weekly' })).rejects.toMatchObject({
      code: 'TURNOUT_CHECKS_MISSING',
    });
    const late = { reason: 'weekly', force: true, expectedEpoch: 2 };
    await expect(setStage(db, 'orders', 'placed', 'event', late)).rejects.toMatchObject({
      code: 'TURNOUT_STAGE_CHANGED',
      details: { stage: 'rpc', epoch: 3, expectedEpoch: 2 },
    });
    expect(await setStage(db, 'orders', 'placed', 'event', { ...late, expectedEpoch: 3 })).toBe(4);
  });

  test('is not overturned by a guardrail that waited for it', async () => {
    await world();
    await force('placed', 'ramp', 5);
    await pool.query(`update turnout.switchover_history set at = at - interval '30 minutes'`);
    await held('orders.placed', 'parked', 9);
    const operator = await pool.connect();
    onTestFinished(() => operator.release());
    await operator.query('begin');
    await operator.query(`select turnout.set_stage('orders', 'placed', 'event', 'I have mended it', 0, true)`);
    const alerts: string[] = [];
    const watching = guardrails({
      source: 'orders',
      database: db,
      switchovers: [placed],
      view: () => ({ evidence: (question) => consumerEvidence(db, 'email', question) }),
      everyMs: 50,
      onAlert: ({ kind, why }) => void alerts.push(`${kind}: ${why}`),
    });
    onTestFinished(() => watching.stop());
    await watching.start();
    await waitFor(
      async () =>
        (await pool.query(`select from pg_stat_activity where wait_event_type = 'Lock' and query like '%step_back%'`))
          .rowCount === 1,
      { what: 'the guardrail to wait' },
    );
    await operator.query('commit');
    await waitFor(
      async () =>
        (await pool.query(`select from pg_stat_activity where wait_event_type = 'Lock' and query like '%step_back%'`))
          .rowCount === 0,
      { what: 'the guardrail to go on' },
    );
    await watching.stop();
    const history = await switchoverHistory(db, 'orders', 'placed');
    expect(history.map(({ to, automatic }) => [to, automatic])).toEqual([
      ['rpc', false],
      ['ramp', false],
      ['event', false],
    ]);
    expect(alerts).toEqual([]);
  });
});

describe('unreadMs', () => {
  const tick = (at: string, numbers: object) =>
    pool.query(
      `insert into turnout.relay_tick (shard, tick, lo, hi, numbers, relay, at)
         select 0, coalesce(max(tick), 0) + 1, pg_current_snapshot(), pg_current_snapshot(), $2::jsonb, 'test', clock_timestamp() - $1::interval from turnout.relay_tick`,
      [at, JSON.stringify(numbers)],
    );
  const at = (partition: number, sequence: number, generation: number) => ({
    topic: 'orders',
    source: 'orders',
    partition,
    generation,
    sequence: String(sequence),
  });
  const unread = (
    ...args: Parameters<typeof unreadMs> extends [unknown, unknown, unknown, ...infer Rest] ? Rest : never
  ) => unreadMs(db, 'orders', 'orders', ...args);
  const hour = 3_600_000;

  test('sees partitions that were never read, and what is left of an older generation', async () => {
    await world();
    expect(await unread([])).toBeUndefined();
    await tick('10 hours', {});
    await tick('9 hours', { 'orders/1': { orders: [10, 50] } });
    expect(await unread([at(0, 10, 1), at(1, 50, 1)])).toBe(0);
    // Never read: what was published before the stage was set is not its own.
    expect(await unread([at(0, 10, 1)])).toBeGreaterThan(9.9 * hour);
    expect(await unread([at(0, 10, 1)], { withinMs: 8 * hour })).toBe(0);
    await tick('2 hours', { 'orders/1': { orders: [10, 50] } });
    await tick('1 hour', { 'orders/1': { orders: [10, 53] } });
    const late = (await unread([at(0, 10, 1)], { withinMs: 8 * hour }))!;
    expect([late > 1.9 * hour, late < 2.1 * hour]).toEqual([true, true]);
    expect(await unread([], { withinMs: 8 * hour })).toBeGreaterThan(1.9 * hour);
    // Numbers begin again, and the ticks forget the old ones.
    await pool.query(`update turnout.source set generation = 2 where name = 'orders'`);
    await tick('30 minutes', {});
    await tick('20 minutes', { 'orders/2': { orders: [4, 0] } });
    expect(await unread([at(0, 4, 2), at(1, 53, 1)])).toBe(0);
    const old = (await unread([at(0, 4, 2), at(1, 50, 1)]))!;
    expect([old > 1.9 * hour, old < 2.1 * hour]).toEqual([true, true]);
    const fresh = (await unread([at(0, 10, 1), at(1, 53, 1)]))!;
    expect([fresh > 0.4 * hour, fresh < 0.6 * hour]).toEqual([true, true]);
  });
});
