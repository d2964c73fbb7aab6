import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import { defineEvent, defineTopic, isTurnoutError, on } from '../../src/index.ts';
import type { RpcAnswer } from '../../src/index.ts';
import {
  afterAnswer,
  callFor,
  callHeaders,
  defineSwitchover,
  formatTurn,
  hasCallHeaders,
  isPromotion,
  isStage,
  parseTurn,
  rampBucket,
  readCallHeaders,
  routeFor,
  stages,
  transitions,
} from '../../src/switchover/index.ts';
import type { Answered, Next } from '../../src/switchover/index.ts';

const schema = z.object({ id: z.string() });
const orders = defineTopic({ name: 'orders' });
const key = (data: { id: string }): string => data.id;
const Placed = defineEvent({ name: 'orders.placed', version: 1, topic: orders, schema, key });
const PlacedTwo = defineEvent({ name: 'orders.placed', version: 2, topic: orders, schema, key });
const Elsewhere = defineEvent({ name: 'stock.taken', version: 1, topic: 'stock', schema, key });
const Unordered = defineEvent({ name: 'orders.seen', version: 1, topic: orders, schema, order: 'none' });
const answer: RpcAnswer = { status: 200, headers: {}, body: null };

describe('defineSwitchover', () => {
  const base = { name: 'order-email', consumer: 'email', order: 'key' as const, rpc: [on(Placed, () => answer)] };

  test('gives what it was given, and what follows from it', () => {
    const switchover = defineSwitchover({ ...base, rpc: [on(Placed, () => answer), on(PlacedTwo, () => answer)] });
    expect(switchover).toMatchObject({
      name: 'order-email',
      consumer: 'email',
      topic: 'orders',
      eventTypes: ['orders.placed'],
      timeoutMs: 10_000,
    });
    expect(callFor(switchover, 'orders.placed', 2)).toBe(switchover.rpc[1]);
    expect(callFor(switchover, 'orders.placed', 3)).toBe(switchover.rpc[0]);
    expect(callFor(switchover, 'orders.gone', 1)).toBeUndefined();
  });

  test.each<[string, Partial<Parameters<typeof defineSwitchover>[0]>, string]>([
    ['a name that is none', { name: 'Order email' }, 'name'],
    ['a consumer that is none', { consumer: '' }, 'consumer'],
    ['an order that is none', { order: 'customer' as 'key' }, 'order'],
    ['no calls', { rpc: [] }, 'rpc'],
    ['two topics', { rpc: [on(Placed, () => answer), on(Elsewhere, () => answer)] }, 'rpc.1'],
    ['order over an event type that has none', { rpc: [on(Unordered, () => answer)] }, 'rpc.0'],
    ['two calls for one event', { rpc: [on(Placed, () => answer), on(Placed, () => answer)] }, 'rpc.1'],
    ['a time-out of nothing', { timeoutMs: 0 }, 'timeoutMs'],
  ])('refuses %s', (_, more, path) => {
    let error: unknown;
    try {
      defineSwitchover({ ...base, ...more });
    } catch (thrown) {
      error = thrown;
    }
    expect(isTurnoutError(error, 'TURNOUT_SWITCHOVER_INVALID') && error.details['path']).toBe(path);
  });

  test('takes an ordered event type without order', () => {
    expect(
      defineSwitchover({ ...base, order: 'none', rpc: [on(Placed, () => answer), on(Unordered, () => answer)] }).order,
    ).toBe('none');
  });
});

describe('stages', () => {
  test('every stage has a way back to rpc, but done', () => {
    for (const stage of stages) {
      if (stage === 'rpc') continue;
      expect(transitions[stage].includes('rpc')).toBe(stage !== 'done');
    }
    expect(transitions.done).toEqual([]);
    expect(stages.filter((stage) => transitions[stage].includes('done'))).toEqual(['event']);
  });

  test('promotions lead forward', () => {
    expect(isPromotion('rpc', 'event')).toBe(true);
    expect(isPromotion('event', 'rpc')).toBe(false);
    expect(isPromotion('ramp', 'ramp')).toBe(false);
    expect([isStage('ramp'), isStage('half')]).toEqual([true, false]);
  });

  const salts = fc.uuid();
  const keys = fc.string({ minLength: 1, maxLength: 40 });

  test('a higher percentage only adds keys', () => {
    fc.assert(
      fc.property(salts, keys, fc.nat(10_000), fc.nat(10_000), (salt, each, a, b) => {
        const [low, high] = [Math.min(a, b) / 100, Math.max(a, b) / 100];
        const at = (percent: number) => routeFor({ stage: 'ramp', percent, salt }, each);
        expect(at(low) === 'event' && at(high) === 'rpc').toBe(false);
        expect([at(0), at(100)]).toEqual(['rpc', 'event']);
      }),
    );
  });

  test('a percentage is that share of the keys', () => {
    const salt = 'a salt';
    const count = Array.from({ length: 20_000 }, (_, index) =>
      routeFor({ stage: 'ramp', percent: 7, salt }, `order-${index}`),
    ).filter((route) => route === 'event').length;
    expect(count / 20_000).toBeCloseTo(0.07, 2);
    expect(new Set(Array.from({ length: 1_000 }, (_, index) => rampBucket(salt, String(index)))).size).toBeGreaterThan(
      900,
    );
  });
});

describe('afterAnswer', () => {
  const own = (status: number, headers: Record<string, string>): Answered => ({ kind: 'answer', status, headers });
  const turn = { generation: 2, number: 7 };
  const done = (outcome: string, rejected = false): Partial<Next> =>
    ({ kind: 'done', outcome, rejected }) as Partial<Next>;

  test.each<[string, Answered, Partial<Next>]>([
    ['applied', own(201, { 'turnout-outcome': 'applied' }), done('applied')],
    ['rejected', own(404, { 'turnout-outcome': 'rejected' }), done('rejected', true)],
    // Given up is not done.
    ['skipped', own(200, { 'turnout-outcome': 'skipped' }), done('skipped', true)],
    ['dead', own(200, { 'turnout-outcome': 'dead' }), done('dead', true)],
    [
      'a repeat of what was given up',
      own(200, { 'turnout-outcome': 'duplicate', 'turnout-first-outcome': 'dead' }),
      done('dead', true),
    ],
    [
      'a repeat of what was skipped',
      own(422, { 'turnout-outcome': 'duplicate', 'turnout-first-outcome': 'skipped' }),
      done('skipped', true),
    ],
    [
      'a repeat with a first outcome that is none',
      own(200, { 'turnout-outcome': 'duplicate', 'turnout-first-outcome': 'fine' }),
      done('duplicate'),
    ],
    ['a repeat of what was applied', own(201, { 'turnout-outcome': 'duplicate' }), done('duplicate')],
    ['a repeat of what was rejected', own(404, { 'turnout-outcome': 'duplicate' }), done('duplicate', true)],
    [
      'an outcome that is none',
      own(200, { 'turnout-outcome': 'fine' }),
      { kind: 'pending', needsSomeone: true, uncertain: true },
    ],
    ['a success without an outcome', own(204, {}), { kind: 'pending', needsSomeone: true, uncertain: true }],
    ['a proxy’s 404', own(404, { server: 'nginx' }), { kind: 'pending', needsSomeone: false }],
    ['a gateway’s 401', own(401, {}), { kind: 'pending' }],
    ['a foreign 409', own(409, {}), { kind: 'pending' }],
    ['a foreign 425', own(425, { 'turnout-last-number': '2.3' }), { kind: 'pending' }],
    ['running', own(409, { 'turnout-error': 'TURNOUT_EFFECT_RUNNING' }), { kind: 'poll' }],
    [
      'early',
      own(425, { 'turnout-error': 'x', 'turnout-last-number': '2.3' }),
      { kind: 'resend', after: { generation: 2, number: 3 } },
    ],
    [
      'early, in an older generation',
      own(425, { 'turnout-error': 'x', 'turnout-last-number': '1.9' }),
      { kind: 'resend', after: { generation: 2, number: 0 } },
    ],
    [
      'early, in a newer generation',
      own(425, { 'turnout-error': 'x', 'turnout-last-number': '3.1' }),
      { kind: 'pending' },
    ],
    [
      'early, with nothing missing',
      own(425, { 'turnout-error': 'x', 'turnout-last-number': '2.6' }),
      { kind: 'pending' },
    ],
    [
      'early, with a last number that is none',
      own(425, { 'turnout-error': 'x', 'turnout-last-number': 'six' }),
      { kind: 'pending' },
    ],
    ['early, without a last number', own(425, { 'turnout-error': 'x' }), { kind: 'pending' }],
    [
      'another body',
      own(422, { 'turnout-error': 'TURNOUT_EFFECT_KEY_REUSED' }),
      { kind: 'pending', needsSomeone: true },
    ],
    [
      'not authenticated',
      own(401, { 'turnout-error': 'TURNOUT_UNAUTHENTICATED' }),
      { kind: 'pending', needsSomeone: true },
    ],
    ['halted', own(503, { 'turnout-error': 'TURNOUT_GATE_HALTED' }), { kind: 'pending', needsSomeone: false }],
    [
      'no answer',
      { kind: 'failed', why: 'ECONNREFUSED' },
      { kind: 'pending', why: 'ECONNREFUSED', needsSomeone: false },
    ],
  ])('%s', (_, answered, next) => {
    expect(afterAnswer(turn, answered)).toMatchObject(next);
  });

  test('whatever comes back, only an outcome of the gate ends a call', () => {
    const headers = fc.dictionary(
      fc.constantFrom('turnout-outcome', 'turnout-error', 'turnout-last-number', 'server'),
      fc.constantFrom('applied', 'duplicate', 'ok', '2.3', ''),
    );
    fc.assert(
      fc.property(
        fc.integer({ min: 100, max: 599 }),
        headers,
        fc.option(fc.constant(turn), { nil: undefined }),
        (status, given, mine) => {
          const next = afterAnswer(mine, own(status, given));
          expect(next.kind === 'done').toBe(
            given['turnout-outcome'] === 'applied' || given['turnout-outcome'] === 'duplicate',
          );
          if (next.kind === 'resend') expect(next.after.number + 1).toBeLessThan(mine!.number);
        },
      ),
    );
  });
});

describe('the headers of a call', () => {
  const event = (each: { id: string; key: string | null; time: Date }) => ({
    ...each,
    type: 'orders.placed',
    version: 1,
    source: 'orders',
    topic: 'orders',
    data: {},
    headers: {},
  });

  test('carry the effect there and back, whatever the key', () => {
    fc.assert(
      fc.property(
        fc.uuid(),
        fc
          .string({ unit: 'grapheme', minLength: 1, maxLength: 50 })
          .filter((text) => text.isWellFormed() && !text.includes('\0')),
        fc.date({ min: new Date('2020-01-01T00:00:00Z'), max: new Date('2030-01-01T00:00:00Z'), noInvalidDate: true }),
        fc.option(
          fc.record({ generation: fc.integer({ min: 1, max: 999 }), number: fc.integer({ min: 1, max: 1e12 }) }),
          { nil: undefined },
        ),
        (id, each, time, turn) => {
          const headers = callHeaders('email', event({ id, key: each, time }), turn);
          for (const value of Object.values(headers)) expect(value).toMatch(/^[\x20-\x7e]+$/);
          expect(hasCallHeaders(headers)).toBe(true);
          expect(readCallHeaders(headers, new Date('2030-01-01T00:00:00Z'))).toEqual({
            consumer: 'email',
            effectKey: `email.${id}`,
            eventId: id,
            eventType: 'orders.placed',
            source: 'orders',
            topic: 'orders',
            key: each,
            occurredAt: time,
            turn,
            shadow: false,
          });
        },
      ),
    );
  });

  test('those of a call in stage shadow carry what the event holds, if it is not too long', () => {
    const id = '7d9f2c1e-0000-4000-8000-000000000000';
    const given = { ...event({ id, key: null, time: new Date() }), version: 2, data: { name: 'Zoë', sum: 1.5 } };
    const headers = callHeaders('email', given, undefined, { shadow: true });
    expect(headers['turnout-shadow']).toBe('1');
    expect(readCallHeaders(headers)).toMatchObject({ shadow: true, eventData: { version: 2, data: given.data } });
    const long = callHeaders('email', { ...given, data: 'x'.repeat(6_000) }, undefined, { shadow: true });
    expect(readCallHeaders(long).shadow).toBe(true);
    expect(readCallHeaders(long).eventData).toBeUndefined();
    // Spoilt on its way, or made up: the call goes on without a comparison.
    for (const spoilt of ['%', 'bm90IGpzb24', Buffer.from('{"version":"1","data":{}}').toString('base64url')]) {
      expect(readCallHeaders({ ...headers, 'turnout-event-data': spoilt })).not.toHaveProperty('eventData');
    }
  });

  test('a key number reads as it was written', () => {
    expect(parseTurn(formatTurn({ generation: 3, number: 17 }))).toEqual({ generation: 3, number: 17 });
    for (const bad of [undefined, '', '1', '1.', '.1', '1.-1', '1.2.3', 'a.b']) expect(parseTurn(bad)).toBeUndefined();
  });

  test('an effect key without quotes is read too', () => {
    const id = '7d9f2c1e-0000-4000-8000-000000000000';
    const headers = {
      ...callHeaders('email', event({ id, key: null, time: new Date() }), undefined),
      'idempotency-key': `email.${id}`,
    };
    expect(readCallHeaders(headers).effectKey).toBe(`email.${id}`);
  });
});
