// Stage shadow at an endpoint: what the old handler does is compared with what the event handler would have done.
import { randomUUID } from 'node:crypto';
import type { Request } from 'express';
import { Pool } from 'pg';
import type { PoolClient } from 'pg';
import { afterEach, describe, expect, test, vi } from 'vitest';
import {
  compareWith,
  consumerEvidence,
  defineConsumer,
  defineConfig,
  describeEffect,
  on,
  planned,
  shadowReport,
  unwatchTable,
  waiveMismatch,
  watchTable,
} from 'turnout';
import type { CompareOptions, HandlerContext, TurnoutEvent } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { failOnMismatch, showShadow } from '../../src/cli/commands/index.ts';
import { waitFor } from '../support/index.ts';
import { consumer, OrderPlaced } from './fixtures/switchover-world.ts';
import type { Order } from './fixtures/switchover-world.ts';

type Service = Awaited<ReturnType<typeof consumer>>;
type Handler = (event: TurnoutEvent<Order>, context: HandlerContext<PoolClient>) => unknown;

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Never connects: a comparison runs handlers in the endpoint's own transaction. */
const elsewhere = pgDatabase(new Pool());

const write = (tx: PoolClient, { orderId, step }: Order, how = 'rpc') =>
  tx.query('insert into effects (order_id, step, how) values ($1, $2, $3)', [orderId, step, how]);

/** A service whose old endpoint writes one row, and whose event handler is the one given. */
async function shadowed(
  handler: Handler | ReturnType<typeof planned<string, Order, Order, HandlerContext<PoolClient>, unknown>>,
  options: CompareOptions<Request, Order> = {},
): Promise<Service> {
  const definition = defineConsumer(elsewhere, {
    name: 'email',
    from: 'now',
    handlers: [typeof handler === 'function' ? on(OrderPlaced, handler as never) : (handler as never)],
  });
  const shadow = compareWith(definition, { pure: true, timeoutMs: 5_000, ...options } as never);
  const made = await consumer({ shadow: shadow as never });
  closers.push(made.close);
  await watchTable(made.database, 'effects');
  return made;
}

interface Call {
  step?: number;
  shadow?: boolean;
  data?: unknown;
  eventId?: string;
}

async function call(s: Service, { step = 1, shadow = true, data, eventId = randomUUID() }: Call = {}) {
  const order = { orderId: 'order 1', step };
  const response = await fetch(s.url, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      'idempotency-key': `"email.${eventId}"`,
      'turnout-consumer': 'email',
      'turnout-event-id': eventId,
      'turnout-event-type': 'orders.order-placed',
      'turnout-event-source': 'orders',
      'turnout-event-topic': 'orders',
      'turnout-event-key': 'order%201',
      'turnout-event-time': new Date().toISOString(),
      ...(shadow
        ? {
            'turnout-shadow': '1',
            'turnout-event-data': Buffer.from(JSON.stringify({ version: 1, data: data ?? order })).toString(
              'base64url',
            ),
          }
        : {}),
    },
    body: JSON.stringify(order),
  });
  return { status: response.status, outcome: response.headers.get('turnout-outcome'), body: await response.text() };
}

const total = ({ decisions: { compared, failed, skipped } }: Awaited<ReturnType<typeof shadowReport>>): number =>
  compared + failed + skipped;

/** The report once so many calls have been told. */
async function reported(s: Service, count: number) {
  let report = await shadowReport(s.database, 'email');
  await waitFor(
    async () => {
      report = await shadowReport(s.database, 'email');
      return total(report) >= count;
    },
    { what: `${count} findings of stage shadow` },
  );
  return report;
}

const applied = { status: 201, outcome: 'applied', body: '{"sent":"order 1","step":1}' };

describe('equal is equal', () => {
  test('whatever SQL led to it, and nothing of the event handler stays', async () => {
    const s = await shadowed(async ({ data }, { tx }) => {
      await tx.query("insert into effects (order_id, step, how) values ($1, 0, 'draft')", [data.orderId]);
      await tx.query("update effects set how = 'rpc', step = $1 where step = 0", [data.step]);
    });
    expect(await call(s)).toEqual(applied);
    expect((await reported(s, 1)).decisions).toEqual({
      compared: 1,
      matched: 1,
      mismatched: 0,
      waived: 0,
      failed: 0,
      skipped: 0,
    });
    expect(await s.effects()).toEqual([1]);
  });

  test('through a joined pool too', async () => {
    const joined: { service?: Service } = {};
    const s = await shadowed(async ({ data }) => {
      const client = await joined.service!.legacyPool.connect();
      await client.query('begin');
      await write(client, data);
      await client.query('commit');
      client.release();
    });
    joined.service = s;
    expect(await call(s)).toEqual(applied);
    expect((await reported(s, 1)).decisions).toMatchObject({ matched: 1, mismatched: 0 });
    expect(await s.effects()).toEqual([1]);
  });

  test('in other stages nothing is compared', async () => {
    const handler = vi.fn();
    const s = await shadowed(handler);
    expect(await call(s, { shadow: false })).toEqual(applied);
    expect(handler).not.toHaveBeenCalled();
  });

  test('with an answer, if the event handler gives one', async () => {
    const s = await shadowed(async ({ data }, { tx }) => {
      await write(tx, data);
      return { sent: data.orderId, step: data.step + 1 };
    });
    await call(s);
    const { groups } = await reported(s, 1);
    expect(groups).toMatchObject([{ kind: 'answer', paths: ['answer.step: other value'], count: 1 }]);
  });
});

describe('a wrong template', () => {
  const wrong: Handler = ({ data }, { tx }) => write(tx, data, 'the wrong template');

  test('is found, grouped, masked, and can be waived', async () => {
    const s = await shadowed(wrong);
    for (const step of [1, 2, 3]) expect(await call(s, { step })).toMatchObject({ status: 201, outcome: 'applied' });
    const { decisions, groups } = await reported(s, 3);
    expect(decisions).toMatchObject({ compared: 3, matched: 0, mismatched: 3, waived: 0 });
    expect(groups).toMatchObject([
      {
        kind: 'writes',
        eventType: 'orders.order-placed',
        count: 3,
        paths: ['writes.effects.*.insert.how: other value'],
        example: { expected: { writes: { effects: [{ insert: { how: expect.stringMatching(/^<string 3 /) } }] } } },
      },
    ]);
    expect(JSON.stringify(groups)).not.toMatch(/wrong template|order 1/);
    expect(await s.effects()).toEqual([1, 2, 3]);

    const { fingerprint } = groups[0]!;
    const tomorrow = new Date(Date.now() + 86_400_000);
    await waiveMismatch(s.database, 'email', fingerprint, { until: tomorrow, reason: 'MAIL-7' });
    expect(await shadowReport(s.database, 'email')).toMatchObject({
      decisions: { compared: 3, mismatched: 0, waived: 3 },
      groups: [{ fingerprint, waivedUntil: tomorrow.toISOString() }],
    });
    await waiveMismatch(s.database, 'email', fingerprint, { until: new Date(Date.now() - 1), reason: 'no more' });
    expect((await shadowReport(s.database, 'email')).decisions).toMatchObject({ mismatched: 3, waived: 0 });
    await expect(waiveMismatch(s.database, 'email', 'nothing', { until: tomorrow, reason: 'x' })).rejects.toMatchObject(
      { code: 'TURNOUT_SHADOW_GROUP_UNKNOWN' },
    );
    await expect(
      waiveMismatch(s.database, 'email', fingerprint, { until: tomorrow, reason: ' ' }),
    ).rejects.toMatchObject({ code: 'TURNOUT_REASON_MISSING' });
  });

  test('is no mismatch where it is ignored, or made alike', async () => {
    for (const options of [{ ignore: ['writes.effects.*.insert.how'] }, { normalise: { '**.how': () => 'alike' } }]) {
      const s = await shadowed(wrong, options);
      await call(s);
      expect((await reported(s, 1)).decisions).toMatchObject({ matched: 1, mismatched: 0 });
    }
  });

  test('is shown where the team allows it', async () => {
    const s = await shadowed(wrong, { show: ['writes.effects.*.insert.how'] });
    await call(s);
    const { groups } = await reported(s, 1);
    expect(groups[0]?.example?.actual).toMatchObject({
      writes: { effects: [{ insert: { how: 'the wrong template' } }] },
    });
  });

  test('keeps five examples at most', async () => {
    const s = await shadowed(wrong);
    for (let step = 0; step < 8; step++) {
      await call(s, { step });
      await reported(s, step + 1);
    }
    expect((await s.pool.query('select from turnout.shadow_example')).rowCount).toBe(5);
  });

  test('of an earlier release is not counted with the newest', async () => {
    const s = await shadowed(wrong, { release: 'one' });
    await call(s);
    await reported(s, 1);
    // As if that had been an hour ago.
    await s.pool.query(
      `update turnout.shadow_count set minute = minute - interval '1 hour';
       update turnout.shadow_mismatch set minute = minute - interval '1 hour'`,
    );
    await s.pool.query(
      `select turnout.record_shadow('email', 'two', '{"counts": [{"eventType": "a", "variant": "", "matched": 1, "mismatched": 0, "failed": 0, "skipped": 0}]}')`,
    );
    expect(await shadowReport(s.database, 'email')).toMatchObject({
      sinceWhy: 'release',
      decisions: { compared: 1, matched: 1, mismatched: 0 },
      groups: [],
    });
    const all = await shadowReport(s.database, 'email', { since: new Date(0) });
    expect(all).toMatchObject({ sinceWhy: 'asked', decisions: { compared: 2, mismatched: 1 } });
  });

  test.each(['a minute before', 'the same minute'])(
    'of an earlier release that was first seen %s is not counted, though both ran in the minute of the deploy',
    async (when) => {
      const s = await shadowed(wrong, { variant: () => 'gift' });
      const seen = (release: string, counts: string, mismatches = '') =>
        s.pool.query('select turnout.record_shadow($1, $2, $3)', [
          'email',
          release,
          `{"counts": [{"eventType": "a", "variant": "gift", "failed": 0, "skipped": 0, ${counts}}], "mismatches": [${mismatches}]}`,
        ]);
      const mismatch =
        '{"fingerprint": "f", "kind": "writes", "eventType": "a", "paths": ["p"], "count": 1, "effectKey": "k", "expected": {}, "actual": {}}';
      if (when === 'a minute before') {
        await seen('one', '"matched": 1, "mismatched": 0');
        await s.pool.query(`update turnout.shadow_count set minute = minute - interval '1 minute'`);
      }
      await seen('one', '"matched": 0, "mismatched": 1', mismatch);
      await seen('two', '"matched": 1, "mismatched": 0');
      // All of it in one minute, whenever this test runs.
      await s.pool.query(
        `update turnout.shadow_count set minute = (select max(minute) from turnout.shadow_count) where mismatched > 0 or release = 'two';
         update turnout.shadow_mismatch set minute = (select max(minute) from turnout.shadow_count)`,
      );
      expect((await s.pool.query('select from turnout.shadow_mismatch')).rowCount).toBe(1);
      expect(await shadowReport(s.database, 'email')).toMatchObject({
        decisions: { compared: 1, matched: 1, mismatched: 0 },
        variants: [{ variant: 'gift', compared: 1 }],
        groups: [],
      });
      // Seen again after that minute, the old one counts: somebody went back to it, or it was never gone.
      await s.pool.query(
        `insert into turnout.shadow_count (consumer, event_type, variant, release, minute, mismatched)
         select 'email', 'a', '', 'one', max(minute) + interval '1 minute', 1 from turnout.shadow_count`,
      );
      expect((await shadowReport(s.database, 'email')).decisions.mismatched).toBeGreaterThan(0);
    },
  );
});

describe('an error', () => {
  test('of one side is a mismatch, whichever it is', async () => {
    const s = await shadowed(async ({ data }, { tx }) => {
      if (data.step === 1) throw new Error('no template');
      await write(tx, data);
    });
    expect(await call(s)).toEqual(applied);
    s.behaviour.handler = (_request, response) => void response.status(422).json({ why: 'unknown order' });
    expect(await call(s, { step: 2 })).toMatchObject({ status: 422, outcome: 'rejected' });
    s.behaviour.handler = (_request, response) => void response.status(500).end();
    expect(await call(s, { step: 3 })).toMatchObject({ status: 500, outcome: null });
    const { groups, decisions } = await reported(s, 3);
    expect(decisions).toMatchObject({ compared: 3, mismatched: 3 });
    expect(groups.map(({ kind, paths, count }) => [kind, paths, count])).toEqual([
      ['error', ['error: missing'], 2],
      ['error', ['error: unexpected'], 1],
    ]);
    expect(await s.effects()).toEqual([1]);
  });

  test('of both sides is none', async () => {
    const s = await shadowed(() => Promise.reject(new Error('unknown order')));
    s.behaviour.handler = (_request, response) => void response.status(422).json({ why: 'unknown order' });
    await call(s);
    expect((await reported(s, 1)).decisions).toMatchObject({ compared: 1, matched: 1 });
  });

  test('that the event handler swallowed is one, since its transaction could not be committed', async () => {
    const s = await shadowed(async ({ data }, { tx }) => {
      await write(tx, data);
      await tx.query('select 1/0').catch(() => undefined);
    });
    expect(await call(s)).toEqual(applied);
    expect((await reported(s, 1)).groups).toMatchObject([{ kind: 'error' }]);
    expect(await s.effects()).toEqual([1]);
  });

  test('that would come at the commit is one', async () => {
    const s = await shadowed(async ({ data }, { tx }) => {
      await write(tx, data);
      await tx.query('insert into later (id) values (1), (1)');
    });
    await s.pool.query('create table later (id integer unique deferrable initially deferred)');
    expect(await call(s)).toEqual(applied);
    expect((await reported(s, 1)).groups).toMatchObject([{ kind: 'error' }]);
  });
});

describe('whatever the event handler does, the call is as it was', () => {
  test.each<[string, Handler, 'mismatched' | 'failed' | 'matched', CompareOptions]>([
    ['it commits', async ({ data }, { tx }) => (await write(tx, data), tx.query('commit')), 'mismatched', {}],
    ['it rolls back', async ({ data }, { tx }) => (await write(tx, data), tx.query('rollback')), 'mismatched', {}],
    [
      'it commits and doesn’t mind the refusal',
      async ({ data }, { tx }) => (await write(tx, data), await tx.query('commit').catch(() => undefined), undefined),
      'matched',
      {},
    ],
    ['it never settles', () => new Promise(() => undefined), 'failed', { timeoutMs: 100 }],
    ['a statement never ends', (_, { tx }) => tx.query('select pg_sleep(3600)'), 'failed', { timeoutMs: 100 }],
    [
      'it writes too much',
      async ({ data }, { tx }) => {
        for (let nth = 0; nth < 20; nth++) await write(tx, data, 'x'.repeat(1_000));
      },
      'failed',
      { maxBytes: 5_000 },
    ],
    ['it takes a lock of the session', (_, { tx }) => tx.query('select pg_advisory_lock(7)'), 'failed', {}],
    ['its variant is none', () => undefined, 'failed', { variant: () => undefined as never }],
  ])('%s', async (_, handler, how, options) => {
    const s = await shadowed(handler, options as never);
    expect(await call(s)).toEqual(applied);
    expect((await reported(s, 1)).decisions[how]).toBe(1);
    expect(await s.effects()).toEqual([1]);
    expect(await s.inbox()).toMatchObject([{ outcome: 'applied', path: 'rpc' }]);
    // And the connection is a good one.
    expect(await call(s, { eventId: randomUUID() })).toEqual(applied);
  });

  test('it writes on after its time, by its transaction and by a joined pool', async () => {
    const heard: unknown[] = [];
    let wake: () => void = () => undefined;
    const woken = new Promise<void>((resolve) => (wake = resolve));
    const joined: { service?: Service } = {};
    const s = await shadowed(
      async ({ data }, { tx, signal }) => {
        await woken;
        heard.push(signal.aborted);
        await write(tx, data, 'late').catch((error) => heard.push(error.code));
        await joined
          .service!.legacyPool.query("insert into effects (order_id, step, how) values ('late', 9, 'late')")
          .catch((error) => heard.push(error.code));
      },
      { timeoutMs: 50 },
    );
    joined.service = s;
    expect(await call(s)).toEqual(applied);
    wake();
    await waitFor(() => heard.length === 3, { what: 'the late writes to be refused' });
    expect(heard).toEqual([true, 'TURNOUT_JOIN_REFUSED', 'TURNOUT_JOIN_REFUSED']);
    expect((await reported(s, 1)).decisions.failed).toBe(1);
    expect(await s.effects()).toEqual([1]);
  });

  test('it is slow: the call waits for twice its time at most', async () => {
    const s = await shadowed((_, { tx }) => tx.query('select pg_sleep(30)'), { timeoutMs: 150 });
    const begun = performance.now();
    expect(await call(s)).toEqual(applied);
    // Far from thirty seconds, on the slowest machine.
    expect(performance.now() - begun).toBeLessThan(10_000);
  });

  test('many calls come at once: two are compared, the others go by', async () => {
    let inside = 0;
    let most = 0;
    const s = await shadowed(async ({ data }, { tx }) => {
      most = Math.max(most, ++inside);
      await tx.query('select pg_sleep(0.05)');
      await write(tx, data);
      inside--;
    });
    const answers = await Promise.all(Array.from({ length: 8 }, () => call(s)));
    expect(answers).toEqual(answers.map(() => applied));
    const { decisions } = await reported(s, 8);
    expect(most).toBeLessThanOrEqual(2);
    expect(decisions.skipped).toBeGreaterThan(0);
    expect(decisions.matched + decisions.skipped).toBe(8);
  });

  test('the findings can’t be written', async () => {
    const s = await shadowed(({ data }, { tx }) => write(tx, data));
    await s.pool.query('drop function turnout.record_shadow');
    expect(await call(s)).toEqual(applied);
    expect(await s.effects()).toEqual([1]);
  });
});

describe('what is compared', () => {
  test('is a sample', async () => {
    const handler = vi.fn();
    const s = await shadowed(handler, { sample: 0 });
    expect(await call(s)).toEqual(applied);
    expect(handler).not.toHaveBeenCalled();
  });

  test('needs the event: from the call, or from the request', async () => {
    const s = await shadowed(({ data }, { tx }) => write(tx, data), {
      eventOf: (request) => ({ version: 1, data: request.body }),
    });
    const eventId = randomUUID();
    const bare = await shadowed(({ data }, { tx }) => write(tx, data));
    for (const each of [s, bare]) {
      const response = await fetch(each.url, {
        method: 'POST',
        headers: {
          'content-type': 'application/json',
          'idempotency-key': `"email.${eventId}"`,
          'turnout-consumer': 'email',
          'turnout-event-id': eventId,
          'turnout-event-type': 'orders.order-placed',
          'turnout-event-source': 'orders',
          'turnout-event-topic': 'orders',
          'turnout-event-time': new Date().toISOString(),
          'turnout-shadow': '1',
        },
        body: JSON.stringify({ orderId: 'order 1', step: 1 }),
      });
      expect(response.status).toBe(201);
    }
    expect((await reported(s, 1)).decisions).toMatchObject({ matched: 1 });
    expect((await reported(bare, 1)).decisions).toMatchObject({ compared: 0, skipped: 1 });
  });

  test('is told by variant, those that nobody has seen too', async () => {
    const s = await shadowed(({ data }, { tx }) => write(tx, data), {
      variant: (event) => (event.data.step === 1 ? 'first' : 'later'),
      variants: ['first', 'never'],
    });
    await call(s, { step: 1 });
    await call(s, { step: 2 });
    expect((await reported(s, 2)).variants).toEqual([
      { variant: 'first', compared: 1, expected: true },
      { variant: 'later', compared: 1, expected: false },
      { variant: 'never', compared: 0, expected: true },
    ]);
  });

  test('are plans, for handlers that can’t be taken back', async () => {
    const performed = vi.fn();
    const s = await shadowed(
      planned(OrderPlaced, {
        plan: (event) => [{ to: event.data.orderId, template: event.data.step === 1 ? 'right' : 'wrong' }],
        perform: performed,
      }) as never,
    );
    s.behaviour.handler = (request, response) => {
      describeEffect({ to: (request.body as Order).orderId, template: 'right' });
      response.status(201).json({});
    };
    await call(s, { step: 1 });
    await call(s, { step: 2 });
    const { decisions, groups } = await reported(s, 2);
    expect(decisions).toMatchObject({ matched: 1, mismatched: 1 });
    expect(groups).toMatchObject([{ kind: 'effects', paths: ['effects.*.template: other value'] }]);
    expect(performed).not.toHaveBeenCalled();
    // Outside of a comparison it does nothing.
    describeEffect({ to: 'nobody' });
  });

  test('are tables that are watched: parents and children with made-up keys', async () => {
    const s = await shadowed(async ({ data }, { tx }) => {
      const { rows } = await tx.query('insert into parent (name) values ($1) returning id', [data.orderId]);
      await tx.query('insert into child (parent_id, text) values ($1, $2)', [rows[0].id, 'x']);
      await write(tx, data);
    });
    await s.pool.query(`
      create table parent (id bigint generated always as identity primary key, name text, made timestamptz default clock_timestamp(),
                           code uuid default gen_random_uuid(), kind text default 'plain', at timestamptz default current_timestamp);
      create table child (parent_id bigint references parent, text text, primary key (parent_id, text)) partition by list (text);
      create table child_x partition of child for values in ('x')`);
    for (const table of ['parent', 'child', 'parent']) await watchTable(s.database, table);
    s.behaviour.handler = (request, response, next) => {
      const { orderId, step } = request.body as Order;
      const work = async (): Promise<void> => {
        const { rows } = await s.legacyPool.query('insert into parent (name) values ($1) returning id', [orderId]);
        await s.legacyPool.query('insert into child (text, parent_id) values ($2, $1)', [rows[0].id, 'x']);
        await write(s.legacyPool as never, { orderId, step });
        response.status(201).json({});
      };
      work().then(undefined, next);
    };
    await call(s);
    const report = await reported(s, 1);
    expect(report.groups).toEqual([]);
    expect(report.decisions).toMatchObject({ matched: 1 });
    expect(
      (await s.pool.query('select name, generated_columns from turnout.watched_table order by name')).rows,
    ).toEqual([
      { name: 'child', generated_columns: [] },
      { name: 'effects', generated_columns: ['id'] },
      { name: 'parent', generated_columns: ['id', 'made', 'code', 'at'] },
    ]);
    await unwatchTable(s.database, 'parent');
    expect((await s.pool.query('select from turnout.watched_table')).rowCount).toBe(2);
    await s.pool.query('create view seen as select 1 as x');
    await expect(watchTable(s.database, 'seen')).rejects.toMatchObject({ code: 'TURNOUT_SHADOW_TABLE_INVALID' });
    await expect(watchTable(s.database, 'turnout.inbox')).rejects.toMatchObject({
      code: 'TURNOUT_SHADOW_TABLE_INVALID',
    });
  });
});

describe('turnout shadow', () => {
  test('reports for people, for programs and for CI', async () => {
    const s = await shadowed(({ data }, { tx }) => write(tx, data, 'wrong'), { variants: ['never'] });
    await call(s);
    await reported(s, 1);
    const config = defineConfig({ consumerDatabases: { email: s.database } });
    const { report, printed } = await showShadow(config, 'email', {});
    expect(printed.data).toEqual(report);
    expect(printed.text).toContain('1 compared, 0 matched, 1 mismatched');
    expect(printed.text).toContain('writes.effects.*.insert.how: other value');
    expect(printed.text).toMatch(/never +never/);
    expect(() => failOnMismatch(report)).toThrow(expect.objectContaining({ code: 'TURNOUT_SHADOW_MISMATCHED' }));
    const later = await showShadow(config, 'email', { since: new Date(Date.now() + 3_600_000) });
    expect(later.report.decisions.compared).toBe(0);
    expect(() => failOnMismatch(later.report)).not.toThrow();
    await expect(showShadow(config, 'fax', {})).rejects.toMatchObject({ code: 'TURNOUT_CONFIG_INVALID' });
  });

  test('reports what the consumer’s team serves, of the time that is asked for, or says that it can’t', async () => {
    const s = await shadowed(({ data }, { tx }) => write(tx, data, 'wrong'));
    await call(s);
    await reported(s, 1);
    const served = defineConfig({ evidence: { email: (question) => consumerEvidence(s.database, 'email', question) } });
    expect((await showShadow(served, 'email', {})).report.decisions.mismatched).toBe(1);
    const anHourAgo = { since: new Date(Date.now() - 3_600_000) };
    expect((await showShadow(served, 'email', anHourAgo)).report.sinceWhy).toBe('asked');
    const deaf = defineConfig({
      evidence: { email: ({ shadow }) => consumerEvidence(s.database, 'email', { shadow: shadow === true }) },
    });
    expect((await showShadow(deaf, 'email', {})).report.decisions.mismatched).toBe(1);
    await expect(showShadow(deaf, 'email', anHourAgo)).rejects.toThrow(/another time than --since/);
    const away = defineConfig({ evidence: { email: () => Promise.reject(new Error('502')) } });
    await expect(showShadow(away, 'email', {})).rejects.toThrow(/will not do: 502/);
  });
});

describe('definitions', () => {
  test('of handlers that are neither pure nor planned are refused, and of another consumer', () => {
    const definition = defineConsumer(elsewhere, { name: 'email', from: 'now', handlers: [on(OrderPlaced, () => 1)] });
    const invalid = expect.objectContaining({ code: 'TURNOUT_DEFINITION_INVALID' });
    expect(() => compareWith(definition)).toThrow(invalid);
    expect(() => compareWith(definition, { pure: true, sample: 2 })).toThrow(invalid);
    expect(() => compareWith(definition, { pure: true, timeoutMs: 0 })).toThrow(invalid);
    const detached = defineConsumer(elsewhere, {
      name: 'email',
      from: 'now',
      mode: 'detached',
      handlers: [on(OrderPlaced, () => 1)],
    });
    expect(() => compareWith(detached, { pure: true })).toThrow(invalid);
  });
});
