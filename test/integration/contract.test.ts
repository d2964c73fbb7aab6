// The consumer's contract in SQL: its decisions are those of TypeScript, and its functions take a consumer through a switchover.
import { randomUUID } from 'node:crypto';
import fc from 'fast-check';
import type { Pool, PoolClient } from 'pg';
import { describe, expect, test } from 'vitest';
import { countSequence, planFor } from '../../src/consumer/decide.ts';
import { formatRoutes, parseRoutes } from '../../src/event/index.ts';
import type { Stamp, TurnoutEvent } from '../../src/event/index.ts';
import { apply, heldThatCanGoOn } from '../../src/inbox/index.ts';
import { decide } from '../../src/inbox/decide.ts';
import type { Gate, KnownEffect } from '../../src/inbox/decide.ts';
import { answerTo } from '../../src/switchover/endpoint/gate-answer.ts';
import { callHeaders } from '../../src/switchover/index.ts';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';

const pool: Pool = (await database({ template: migrated('consumer') })).pool({ max: 8 });
await pool.query('create table effects (id bigint generated always as identity, what text)');

/** One row a case, in the order given. */
async function sqlOf(statement: string, cases: readonly object[]): Promise<unknown[]> {
  const { rows } = await pool.query<{ result: unknown }>(statement, [JSON.stringify(cases)]);
  return rows.map(({ result }) => result);
}

const combine = (values: Readonly<Record<string, readonly unknown[]>>): Record<string, unknown>[] =>
  Object.entries(values).reduce<Record<string, unknown>[]>(
    (all, [name, each]) => all.flatMap((one) => each.map((value) => ({ ...one, [name]: value }))),
    [{}],
  );

describe('the decisions in SQL are those of TypeScript', () => {
  test('decide_effect and decide(), every combination', async () => {
    const mine = randomUUID();
    const other = randomUUID();
    const cases = combine({
      known: [
        undefined,
        ...combine({
          outcome: ['running', 'queued', 'applied', 'rejected', 'skipped', 'dead'],
          eventId: [mine, other],
          requestHash: [undefined, 'same', 'else'],
          leaseOver: [true, false],
        }),
      ],
      gate: [
        undefined,
        ...combine({ generation: [1, 2, 3], lastNumber: [0, 1, 2, 5], halted: [undefined, 'stopped'] }),
      ],
      turn: [undefined, ...combine({ generation: [1, 2, 3], number: [0, 1, 2, 3, 6] })],
      requestHash: [undefined, 'same'],
      tooOld: [true, false],
    }) as { known?: KnownEffect; gate?: Gate; turn?: Stamp['turn']; requestHash?: string; tooOld: boolean }[];
    expect(cases.length).toBeGreaterThan(100_000);
    const expected = cases.map(
      (one) =>
        decide({
          eventId: mine,
          path: 'event',
          requestHash: one.requestHash,
          turn: one.turn,
          tooOld: one.tooOld,
          known: one.known,
          gate: one.gate,
        }).kind,
    );
    const decided: unknown[] = [];
    for (let at = 0; at < cases.length; at += 20_000) {
      decided.push(
        ...(await sqlOf(
          `select turnout.decide_effect('${mine}', c.h, c.g, c.n, c.old, c.ko, c.ke, c.kh, c.kl, c.gg, c.gn, c.gh) as result
             from rows from (jsonb_to_recordset($1::jsonb) as (h text, g integer, n bigint, old boolean, ko text, ke uuid, kh text, kl boolean,
                                                               gg integer, gn bigint, gh text)) with ordinality
                  as c (h, g, n, old, ko, ke, kh, kl, gg, gn, gh, place)
            order by c.place`,
          cases.slice(at, at + 20_000).map(({ known, gate, turn, requestHash, tooOld }) => ({
            h: requestHash,
            g: turn?.generation,
            n: turn?.number,
            old: tooOld,
            ko: known?.outcome,
            ke: known?.eventId,
            kh: known?.requestHash,
            kl: known?.leaseOver,
            gg: gate?.generation,
            gn: gate?.lastNumber,
            gh: gate?.halted,
          })),
        )),
      );
    }
    const wrong = cases.flatMap((one, at) =>
      decided[at] === expected[at] ? [] : [{ ...one, ts: expected[at], sql: decided[at] }],
    );
    expect(wrong.slice(0, 5)).toEqual([]);
    expect(new Set(expected).size).toBe(9);
  });

  test('plan_event and planFor(), every combination', async () => {
    const stamp = (route: 'rpc' | 'event', turn: Stamp['turn']): Stamp => ({
      consumer: 'a',
      route,
      epoch: 1,
      shadow: false,
      turn,
    });
    const cases = combine({
      beforeSince: [true, false],
      finding: ['off', 'next', 'hole', 'repeat', 'before-base'],
      stamp: [
        undefined,
        stamp('rpc', undefined),
        stamp('event', undefined),
        stamp('event', { generation: 1, number: 1 }),
      ],
      inSwitchover: [true, false],
      handler: ['present', 'other-version', 'none'],
      refused: [undefined, 'too large'],
    }) as {
      beforeSince: boolean;
      finding: string;
      stamp?: Stamp;
      inSwitchover: boolean;
      handler: 'present';
      refused?: string;
    }[];
    const state = { generation: 1, base: 1n, last: 1n };
    const expected = cases.map((one) => {
      const plan = planFor({
        offset: one.beforeSince ? 1n : 2n,
        since: 2n,
        finding: { kind: one.finding, state, from: 1n, to: 1n } as ReturnType<typeof countSequence>,
        stamp: one.stamp,
        inSwitchover: one.inSwitchover,
        handler: one.handler,
        refused: one.refused,
      });
      return plan.kind === 'apply' ? 'apply' : `${plan.kind} ${plan.why}`;
    });
    const planned = await sqlOf(
      `select turnout.plan_event(c.b, c.f, c.r, c.s, c.h, c.x) as result
         from rows from (jsonb_to_recordset($1::jsonb) as (b boolean, f text, r text, s boolean, h text, x boolean)) with ordinality
              as c (b, f, r, s, h, x, place) order by c.place`,
      cases.map((one) => ({
        b: one.beforeSince,
        f: one.finding,
        r: one.stamp?.route,
        s: one.inSwitchover,
        h: one.handler,
        x: one.refused !== undefined,
      })),
    );
    expect(planned).toEqual(expected);
  });

  test('count_sequence and countSequence(), every combination', async () => {
    const cases = combine({
      state: [undefined, ...combine({ generation: [1, 2], base: [1, 2, 4], ahead: [0, 1, 3] })],
      sequence: [undefined, ...combine({ generation: [1, 2, 3], number: [0, 1, 2, 3, 4, 5, 8] })],
    }) as {
      state?: { generation: number; base: number; ahead: number };
      sequence?: { generation: number; number: number };
    }[];
    const expected = cases.map(
      ({ state, sequence }) =>
        countSequence(
          state && { generation: state.generation, base: BigInt(state.base), last: BigInt(state.base + state.ahead) },
          sequence && { generation: sequence.generation, number: BigInt(sequence.number) },
        ).kind,
    );
    const counted = await sqlOf(
      `select turnout.count_sequence(c.kg, c.kb, c.kl, c.g, c.n) as result
         from rows from (jsonb_to_recordset($1::jsonb) as (kg integer, kb bigint, kl bigint, g integer, n bigint)) with ordinality
              as c (kg, kb, kl, g, n, place) order by c.place`,
      cases.map(({ state, sequence }) => ({
        kg: state?.generation,
        kb: state?.base,
        kl: state && state.base + state.ahead,
        g: sequence?.generation,
        n: sequence?.number,
      })),
    );
    expect(counted).toEqual(expected);
  });

  test('route_of and parseRoutes(), whatever the text', async () => {
    const name = fc.constantFrom('email', 'loyalty', 'a.b-c_1');
    const good = fc
      .uniqueArray(
        fc.record({
          consumer: name,
          route: fc.constantFrom('rpc' as const, 'event' as const),
          epoch: fc.nat(),
          shadow: fc.boolean(),
          turn: fc.option(fc.record({ generation: fc.nat(999), number: fc.nat() }), { nil: undefined }),
        }),
        { selector: ({ consumer }) => consumer, minLength: 1 },
      )
      .map(formatRoutes);
    const spoilt = fc
      .tuple(
        good,
        fc.nat(),
        fc.constantFrom(
          '',
          ';',
          '=',
          ', ',
          ';later=x',
          ';number=7',
          ';generation=1',
          ';epoch=1',
          'x',
          ' ',
          ';shadow=2',
        ),
      )
      .map(([text, at, piece]) => text.slice(0, at % (text.length + 1)) + piece + text.slice(at % (text.length + 1)));
    const texts = fc.sample(fc.oneof(good, spoilt, spoilt), { numRuns: 1_500, seed: 7 });
    const expected = texts.map((text) => {
      try {
        const stamp = parseRoutes(text).find(({ consumer }) => consumer === 'email');
        return stamp === undefined ? null : `${stamp.route} ${stamp.turn?.generation} ${stamp.turn?.number}`;
      } catch {
        return 'malformed';
      }
    });
    await pool.query(`
      create function route_or_malformed(text) returns text language plpgsql as $$
      declare found_route record;
      begin
        select * into found_route from turnout.route_of($1, 'email');
        return found_route.route || ' ' || coalesce(found_route.generation::text, 'undefined') || ' ' || coalesce(found_route.number::text, 'undefined');
      exception when data_exception then return 'malformed';
      end $$`);
    const read = await sqlOf(
      `select route_or_malformed(c.text) as result from jsonb_array_elements_text($1::jsonb) with ordinality as c (text, place) order by c.place`,
      texts as unknown as object[],
    );
    const wrong = texts.flatMap((text, at) =>
      read[at] === expected[at] ? [] : [{ text, ts: expected[at], sql: read[at] }],
    );
    expect(wrong.slice(0, 5)).toEqual([]);
    expect(new Set(expected).has('malformed') && new Set(expected).size > 50).toBe(true);
  });

  test('held_that_can_go_on and heldThatCanGoOn(), over random lines', async () => {
    const db = pgDatabase(pool);
    const line = fc.array(
      fc.record({
        key: fc.constantFrom(null, 'k'),
        turn: fc.option(
          fc.record({ generation: fc.integer({ min: 1, max: 2 }), number: fc.integer({ min: 1, max: 4 }) }),
        ),
        reason: fc.constantFrom('early', 'parked', 'behind'),
      }),
      { minLength: 1, maxLength: 5 },
    );
    const gate = fc.option(
      fc.record({
        generation: fc.integer({ min: 1, max: 2 }),
        last: fc.integer({ min: 0, max: 3 }),
        halted: fc.constantFrom(null, 'stopped'),
      }),
    );
    const lines = fc.sample(fc.tuple(line, gate), { numRuns: 300, seed: 11 });
    await pool.query(
      `insert into turnout.held (consumer, effect_key, reason, source, topic, partition, "offset", key, generation, number, message)
       select 'line-' || l.place, 'effect-' || h.place, h.one ->> 'reason', 's', 't', 0, h.place,
              case when h.one -> 'turn' ->> 'number' is null then h.one ->> 'key' else 'k' end,
              (h.one -> 'turn' ->> 'generation')::integer, (h.one -> 'turn' ->> 'number')::bigint, '{"key": null, "value": "", "headers": {}}'
         from jsonb_array_elements($1::jsonb) with ordinality as l (line, place), jsonb_array_elements(l.line -> 0) with ordinality as h (one, place)
        order by l.place, h.place`,
      [JSON.stringify(lines)],
    );
    await pool.query(
      `insert into turnout.gate (consumer, source, topic, key, generation, last_number, halted)
       select 'line-' || l.place, 's', 't', 'k', (l.line -> 1 ->> 'generation')::integer, (l.line -> 1 ->> 'last')::bigint, l.line -> 1 ->> 'halted'
         from jsonb_array_elements($1::jsonb) with ordinality as l (line, place) where l.line -> 1 ->> 'last' is not null`,
      [JSON.stringify(lines)],
    );
    let some = 0;
    for (let n = 1; n <= lines.length; n++) {
      const ts = (await heldThatCanGoOn(db, `line-${n}`, { after: 0n, limit: 100 })).map(({ effectKey }) => effectKey);
      const { rows } = await pool.query('select effect_key from turnout.held_that_can_go_on($1)', [`line-${n}`]);
      expect({ n, keys: rows.map((row: { effect_key: string }) => row.effect_key) }).toEqual({ n, keys: ts });
      if (ts.length > 0) some++;
    }
    expect(some).toBeGreaterThan(50);
  });
});

interface Begun {
  action: string;
  why: string | null;
  effect: object | null;
  status: number | null;
  answer_headers: Record<string, string> | null;
  body: string | null;
}

const eventOf = (key: string, id: string = randomUUID()): TurnoutEvent => ({
  id,
  type: 'orders.order-placed',
  version: 1,
  source: 'orders',
  topic: 'orders',
  key,
  time: new Date(),
  data: { orderId: key },
  headers: {},
});

let nextOffset = 100;
/** As it comes from the broker. */
function recordOf(event: TurnoutEvent, routes: string | undefined, more: object = {}) {
  return {
    topic: event.topic,
    partition: 0,
    offset: nextOffset++,
    key: event.key,
    value: JSON.stringify(event.data),
    headers: {
      ce_id: event.id,
      ce_type: event.type,
      ce_source: event.source,
      ce_time: event.time.toISOString(),
      ...(routes === undefined ? {} : { 'turnout-routes': routes }),
      ...more,
    } as Record<string, string>,
  };
}

async function inTransaction<Result>(work: (tx: PoolClient) => Promise<Result>, from: Pool = pool): Promise<Result> {
  const tx = await from.connect();
  try {
    await tx.query('begin');
    const result = await work(tx);
    await tx.query('commit');
    return result;
  } catch (error) {
    await tx.query('rollback');
    throw error;
  } finally {
    tx.release();
  }
}

const finish = async (tx: PoolClient, effect: object | null, what: string, answer: object | null = null) => {
  await tx.query('insert into effects (what) values ($1)', [what]);
  await tx.query('select turnout.finish_effect($1, answer => $2)', [effect, answer]);
};

/** What a consumer in any language does with a call. */
const call = (
  consumer: string,
  event: TurnoutEvent,
  turn: Stamp['turn'],
  { hash = 'h', answer = {} }: { hash?: string; answer?: object } = {},
) =>
  inTransaction(async (tx) => {
    const { rows } = await tx.query<Begun>('select * from turnout.begin_call($1, $2, $3, $4)', [
      consumer,
      callHeaders(consumer, event, turn),
      hash,
      turn !== undefined,
    ]);
    if (rows[0]!.action === 'apply') await finish(tx, rows[0]!.effect, `${consumer} ${event.id}`, answer);
    return rows[0]!;
  });

/** What it does with a record. */
const consume = (consumer: string, record: object, options = '') =>
  inTransaction(async (tx) => {
    const { rows } = await tx.query<Begun>(`select * from turnout.begin_event($1, $2${options})`, [consumer, record]);
    if (rows[0]!.action === 'apply') await finish(tx, rows[0]!.effect, `${consumer} event`);
    return rows[0]!;
  });

const drain = async (consumer: string): Promise<number> => {
  for (let n = 0; ; n++) {
    const isOver = await inTransaction(async (tx) => {
      const { rows } = await tx.query<{ effect: object; record: object }>('select * from turnout.next_held($1)', [
        consumer,
      ]);
      if (rows[0] !== undefined) await finish(tx, rows[0].effect, `${consumer} held`);
      return rows[0] === undefined;
    });
    if (isOver) return n;
  }
};

const effects = async (like: string): Promise<number> =>
  (await pool.query('select from effects where what like $1', [like])).rowCount ?? 0;

const eventRoute = (consumer: string, turn?: Stamp['turn']) =>
  formatRoutes([{ consumer, route: 'event', epoch: 1, shadow: false, turn }]);

describe('a consumer that knows only SQL', () => {
  test('a call: first, again with the stored answer, other body, early, none of Turnout’s', async () => {
    const event = eventOf('kéy ,%"1');
    const one = { generation: 1, number: 1 };
    const kept = { status: 201, headers: { 'x-mail': 'queued' }, body: '{"ok":1}', encoding: 'text' };
    expect(await call('c1', event, one, { answer: kept })).toMatchObject({ action: 'apply' });
    expect(await call('c1', event, one)).toMatchObject({
      action: 'answer',
      why: 'repeat',
      status: 201,
      body: '{"ok":1}',
      answer_headers: { 'x-mail': 'queued', 'turnout-outcome': 'duplicate' },
    });
    expect(await call('c1', event, one, { hash: 'other' })).toMatchObject({
      status: 422,
      answer_headers: { 'turnout-error': 'TURNOUT_EFFECT_KEY_REUSED' },
    });
    expect(await call('c1', eventOf(event.key!), { generation: 1, number: 3 })).toMatchObject({
      status: 425,
      answer_headers: { 'turnout-error': 'TURNOUT_EFFECT_EARLY', 'turnout-last-number': '1.1' },
    });
    expect(await call('c1', eventOf('never seen'), { generation: 4, number: 2 })).toMatchObject({
      answer_headers: { 'turnout-last-number': '4.0' },
    });
    // TypeScript knows it too: it is one inbox.
    const verdict = await inTransaction((tx) =>
      apply(
        tx,
        {
          consumer: 'c1',
          effectKey: `c1.${event.id}`,
          eventId: event.id,
          eventType: event.type,
          source: 'orders',
          topic: 'orders',
          key: event.key,
          occurredAt: event.time,
          path: 'event',
          turn: one,
        },
        () => Promise.reject(new Error('once only')),
      ),
    );
    expect(verdict).toMatchObject({ kind: 'done', repeated: true, outcome: 'applied' });
    const { rows } = await pool.query(
      `select action from turnout.begin_call('c1', '{"content-type": "text/plain"}', 'h', true)`,
    );
    expect(rows).toEqual([{ action: 'pass' }]);
    expect(await effects('c1 %')).toBe(1);
  });

  test('a call that can’t be read is refused without an outcome', async () => {
    const good = callHeaders('c2', eventOf('k'), { generation: 1, number: 1 });
    for (const [name, value] of [
      ['turnout-consumer', 'other'],
      ['turnout-event-id', '7'],
      ['turnout-event-time', 'yesterday'],
      ['turnout-event-time', '2999-01-01T00:00:00Z'],
      ['turnout-event-time', '2026-13-01T00:00:00Z'],
      ['turnout-key-number', '1'],
      ['turnout-event-key', '%C3'],
      ['turnout-event-key', '%'],
      ['turnout-event-type', ''],
    ] as const) {
      const { rows } = await pool.query<Begun>(`select * from turnout.begin_call('c2', $1, 'h', true)`, [
        { ...good, [name]: value },
      ]);
      expect(rows[0], name).toMatchObject({ action: 'answer', status: 400, why: 'malformed' });
      expect(rows[0]!.answer_headers).not.toHaveProperty('turnout-outcome');
    }
    const { rows } = await pool.query<Begun>(`select * from turnout.begin_call('c2', $1, 'h', false)`, [good]);
    expect(rows[0]).toMatchObject({ status: 400 });
    const wrongKey = { ...good, 'idempotency-key': '"c2.other"' };
    expect(
      (await pool.query<Begun>(`select * from turnout.begin_call('c2', $1, 'h', true)`, [wrongKey])).rows[0],
    ).toMatchObject({
      status: 422,
    });
  });

  test('an event: routed here, routed as a call, without a route, before the start, twice, early and drained', async () => {
    const turn = (number: number) => ({ generation: 1, number });
    const [first, second, third] = [eventOf('k3'), eventOf('k3'), eventOf('k3')];
    const rpc = formatRoutes([{ consumer: 'c3', route: 'rpc', epoch: 1, shadow: true, turn: turn(1) }]);
    const observed = recordOf(first, rpc);
    expect(await consume('c3', observed)).toMatchObject({ action: 'observe', why: 'route-rpc' });
    expect(await consume('c3', recordOf(eventOf('k3'), undefined))).toMatchObject({
      action: 'observe',
      why: 'no-route',
    });
    expect(await consume('c3', recordOf(eventOf('k3'), eventRoute('other')))).toMatchObject({ why: 'no-route' });
    expect(await consume('c3', { ...recordOf(eventOf('k3'), eventRoute('c3', turn(9))), offset: 1 })).toMatchObject({
      action: 'observe',
      why: 'before-since',
    });

    // After the flip: 3 comes before 2, and 1 is a call that has not come.
    expect(await consume('c3', recordOf(third, eventRoute('c3', turn(3))))).toMatchObject({
      action: 'held',
      why: 'early',
    });
    expect(await consume('c3', recordOf(second, eventRoute('c3', turn(2))))).toMatchObject({ action: 'held' });
    expect(await drain('c3')).toBe(0);
    expect(await call('c3', first, turn(1))).toMatchObject({ action: 'apply' });
    expect(await drain('c3')).toBe(2);
    expect(await consume('c3', recordOf(second, eventRoute('c3', turn(2))))).toMatchObject({
      action: 'duplicate',
      why: 'repeat',
    });
    // Back to calls: what came as an event is a duplicate by call, and answers with nothing.
    expect(await call('c3', third, turn(3))).toMatchObject({ status: 200, body: '{}' });
    expect(await effects('c3 %')).toBe(3);
    expect(
      (await pool.query(`select next_offset - since as n from turnout.position p where p.consumer = 'c3'`)).rows,
    ).toEqual([{ n: String(nextOffset - observed.offset) }]);
  });

  test('one at a time: whoever is at a key, the others are told so', async () => {
    const [first, second] = [eventOf('k4'), eventOf('k4')];
    const turn = (number: number) => ({ generation: 1, number });
    await inTransaction(async (tx) => {
      const headers = callHeaders('c4', first, turn(1));
      const { rows } = await tx.query<Begun>(`select * from turnout.begin_call('c4', $1, 'h', true)`, [headers]);
      expect(await call('c4', first, turn(1))).toMatchObject({ status: 409, answer_headers: { 'retry-after': '1' } });
      const busy = await pool.connect();
      await busy.query('begin');
      const event = await busy.query<Begun>(`select * from turnout.begin_event('c4', $1)`, [
        recordOf(second, eventRoute('c4', turn(2))),
      ]);
      expect(event.rows[0]).toMatchObject({ action: 'busy' });
      await busy.query('rollback');
      busy.release();
      await finish(tx, rows[0]!.effect, 'c4 call');
    });
    expect(await effects('c4 %')).toBe(1);
  });

  test('what fails is begun again and parked; then it is retried, and its successors follow', async () => {
    const turn = (number: number) => ({ generation: 1, number });
    const records = [1, 2].map((number) => recordOf(eventOf('k5'), eventRoute('c5', turn(number))));
    await expect(
      inTransaction(async (tx) => {
        await tx.query('select * from turnout.begin_event($1, $2)', ['c5', records[0]]);
        throw new Error('handler');
      }),
    ).rejects.toThrow('handler');
    expect((await pool.query(`select from turnout.position p where p.consumer = 'c5'`)).rowCount).toBe(0);
    await inTransaction(async (tx) => {
      const { rows } = await tx.query<Begun>('select * from turnout.begin_event($1, $2)', ['c5', records[0]]);
      await tx.query('select turnout.park_effect($1, $2)', [rows[0]!.effect, 'handler']);
    });
    expect(await consume('c5', records[1]!)).toMatchObject({ action: 'held', why: 'early' });
    expect(await drain('c5')).toBe(0);
    expect(
      (await pool.query(`select effect_key, reason, error from turnout.held h where h.consumer = 'c5' order by h.id`))
        .rows,
    ).toMatchObject([{ reason: 'parked', error: 'handler' }, { reason: 'early' }]);
    await pool.query(`select turnout.retry_parked('c5', $1)`, [`c5.${records[0]!.headers['ce_id']}`]);
    expect(await drain('c5')).toBe(2);
  });

  test('lost, repeated and unreadable records leave their mark', async () => {
    const sequence = (number: number) => ({ ce_sequence: `000001-${String(number).padStart(20, '0')}` });
    const repeated = recordOf(eventOf('k6'), eventRoute('c6'), sequence(7));
    expect(await consume('c6', repeated)).toMatchObject({ action: 'apply' });
    expect(await consume('c6', recordOf(eventOf('k6'), eventRoute('c6'), sequence(10)))).toMatchObject({
      action: 'apply',
    });
    expect(await consume('c6', repeated)).toMatchObject({ action: 'duplicate' });
    expect(await consume('c6', recordOf(eventOf('k6'), eventRoute('c6'), sequence(9)))).toMatchObject({
      action: 'held',
      why: 'TURNOUT_UNKNOWN_REPEAT',
    });
    expect(await consume('c6', recordOf(eventOf('k6'), 'c6=event', sequence(11)))).toMatchObject({
      action: 'held',
      why: 'malformed',
    });
    expect(
      await consume('c6', recordOf(eventOf('k6'), eventRoute('c6'), { 'turnout-refused': 'too large' })),
    ).toMatchObject({
      action: 'held',
      why: 'refused',
    });
    expect(await consume('c6', recordOf(eventOf('k6'), eventRoute('c6')), `, types => '{other.type}'`)).toMatchObject({
      action: 'held',
      why: 'handler-missing',
    });
    expect(
      await consume('c6', recordOf(eventOf('k6'), eventRoute('c6')), `, types => '{orders.order-placed v1}'`),
    ).toMatchObject({
      action: 'apply',
    });
    const { rows } = await pool.query(
      `select kind, detail ->> 'from' as low, detail ->> 'to' as high from turnout.alarm a where a.consumer = 'c6' order by a.id`,
    );
    expect(rows).toEqual([
      { kind: 'sequence-hole', low: '8', high: '9' },
      { kind: 'unknown-repeat', low: null, high: null },
    ]);
    expect(await drain('c6')).toBe(0);
    expect(
      (await pool.query(`select from turnout.held h where h.consumer = 'c6' and h.reason = 'parked'`)).rowCount,
    ).toBe(4);
  });

  test.each(['dead', 'skipped', 'rejected', 'applied'])('a repeat says how it ended: %s', async (outcome) => {
    const event = eventOf('k9');
    await inTransaction((tx) =>
      tx.query(
        `select turnout.record_outcome('c9', $1, $2, $3, $4, 'orders', 'orders', 'k9', null, null, 'event', $5, null, null, null, 1)`,
        [`c9.${event.id}`, event.time, event.id, event.type, outcome],
      ),
    );
    const given = answerTo({ kind: 'done', outcome: outcome as 'dead', answer: null, repeated: true }, undefined);
    const told = await call('c9', event, undefined);
    expect(told).toMatchObject({ status: (given as { status: number }).status });
    const saysOutcome = (headers: object) => Object.entries(headers).filter(([name]) => name.endsWith('outcome'));
    expect(new Map(saysOutcome(told.answer_headers!))).toEqual(
      new Map(saysOutcome((given as { headers: object }).headers)),
    );
  });

  test('what is old and unknown is never applied; a key that should know it stops', async () => {
    const old = { ...eventOf('k7'), time: new Date(Date.now() - 40 * 86_400_000) };
    expect(await call('c7', old, undefined)).toMatchObject({
      status: 200,
      answer_headers: { 'turnout-outcome': 'skipped' },
    });
    expect(await call('c7', eventOf('k7'), { generation: 1, number: 1 })).toMatchObject({ action: 'apply' });
    expect(await call('c7', old, { generation: 1, number: 1 })).toMatchObject({ why: 'duplicate' });
    expect(await call('c7', eventOf('k7'), { generation: 1, number: 1 })).toMatchObject({ status: 503, why: 'halt' });
    expect(await call('c7', eventOf('k7'), { generation: 1, number: 2 })).toMatchObject({ status: 503, why: 'halted' });
    expect((await pool.query(`select kind from turnout.alarm a where a.consumer = 'c7' order by a.id`)).rows).toEqual([
      { kind: 'skipped-old' },
      { kind: 'unknown-repeat' },
    ]);
    expect(await pool.query(`select turnout.resume_key('c7', 'orders', 'orders', 'k7', 'looked') as n`)).toMatchObject({
      rows: [{ n: 1 }],
    });
    expect(await call('c7', eventOf('k7'), { generation: 1, number: 2 })).toMatchObject({ action: 'apply' });
  });

  test('an effect is finished where it was begun, and begun at READ COMMITTED', async () => {
    const headers = callHeaders('c8', eventOf('k8'), undefined);
    const { rows } = await pool.query<Begun>(`select * from turnout.begin_call('c8', $1, 'h', false)`, [headers]);
    await expect(pool.query('select turnout.finish_effect($1)', [rows[0]!.effect])).rejects.toMatchObject({
      code: 'TU031',
    });
    await expect(
      inTransaction(async (tx) => {
        await tx.query('set transaction isolation level repeatable read');
        await tx.query(`select * from turnout.begin_call('c8', $1, 'h', false)`, [headers]);
      }),
    ).rejects.toMatchObject({ code: 'TU030' });
    await expect(
      inTransaction(async (tx) => {
        const begun = await tx.query<Begun>(`select * from turnout.begin_call('c8', $1, 'h', false)`, [headers]);
        await tx.query(`select turnout.finish_effect($1, 'running')`, [begun.rows[0]!.effect]);
      }),
    ).rejects.toMatchObject({ code: '22023' });
  });
});

test('each role may do its part, and no more', async () => {
  const all: Pool = (await database({ template: migrated('producer', 'consumer', 'roles') })).pool({ max: 1 });
  const key = `email.${randomUUID()}`;
  const as = (role: string, work: (tx: PoolClient) => Promise<unknown>) =>
    inTransaction(async (tx) => {
      await tx.query(`set local role ${role}`);
      await work(tx);
    }, all);
  await as('turnout_consumer', async (tx) => {
    const headers = callHeaders('email', eventOf('k'), undefined);
    const { rows } = await tx.query<Begun>(`select * from turnout.begin_call('email', $1, 'h', false)`, [headers]);
    await tx.query('select turnout.finish_effect($1)', [rows[0]!.effect]);
    const record = recordOf(eventOf('k'), eventRoute('email'));
    const event = await tx.query<Begun>(`select * from turnout.begin_event('email', $1)`, [record]);
    await tx.query(`select turnout.park_effect($1, 'no')`, [event.rows[0]!.effect]);
    await tx.query(`select * from turnout.next_held('email')`);
  });
  await as('turnout_publisher', async (tx) => {
    await tx.query(`select turnout.await_replies(array[$1], '{order-email}', '{rpc}')`, [key]);
    await tx.query(`select turnout.settle_call($1, 'applied', '{"status": 201, "body": {}}')`, [key]);
    await tx.query(`select turnout.record_reply($1, gen_random_uuid(), 'email.sent', '{}')`, [key]);
    const { rows } = await tx.query('select outcome from turnout.reply_status(array[$1])', [key]);
    expect(rows).toEqual([{ outcome: 'applied' }]);
  });
  await as('turnout_relay', async (tx) => {
    await tx.query(`select turnout.settle_call($1, 'applied', null)`, [key]);
    await tx.query(`select turnout.delete_old_replies('7 days', 100)`);
  });
  for (const [role, statement] of [
    ['turnout_publisher', `select * from turnout.next_held('email')`],
    ['turnout_consumer', `select turnout.enter_effect('{}', '1 day', false)`],
    ['turnout_consumer', `select * from turnout.reply_status('{}')`],
    ['turnout_publisher', 'delete from turnout.reply'],
  ] as const) {
    await expect(
      as(role, (tx) => tx.query(statement)),
      statement,
    ).rejects.toMatchObject({ code: '42501' });
  }
});
