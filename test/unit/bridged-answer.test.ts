import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { isDefinitiveOfBridged, isUnanswered, meaningOf } from '../../src/switchover/calls/bridged-answer.ts';
import { keptJson } from '../../src/switchover/calls/kept-json.ts';
import { afterAnswer, defineSwitchover } from '../../src/switchover/index.ts';
import type { Answered } from '../../src/switchover/index.ts';

const own = (status: number, headers: Record<string, string> = {}): Answered => ({ kind: 'answer', status, headers });
const bridged = { endpoint: 'bridged' } as const;

describe('an answer of a bridged endpoint', () => {
  test.each([
    [200, { kind: 'done', outcome: 'applied', rejected: false }],
    [204, { kind: 'done', outcome: 'applied', rejected: false }],
    [400, { kind: 'done', outcome: 'rejected', rejected: true }],
    [422, { kind: 'done', outcome: 'rejected', rejected: true }],
    [302, { kind: 'pending', needsSomeone: true }],
    [401, { kind: 'pending', needsSomeone: true }],
    [404, { kind: 'pending', needsSomeone: true }],
    [409, { kind: 'pending', needsSomeone: true }],
    [429, { kind: 'pending', needsSomeone: false }],
    [500, { kind: 'pending', needsSomeone: false }],
    [503, { kind: 'pending', needsSomeone: false }],
  ])('%i', (status, next) => {
    expect(afterAnswer(undefined, own(status), bridged)).toMatchObject(next);
  });

  test('carries an outcome after all: then that counts', () => {
    expect(afterAnswer(undefined, own(500, { 'turnout-outcome': 'applied' }), bridged).kind).toBe('done');
  });

  test('which refusals are definitive is the definition’s to say', () => {
    const callee = { ...bridged, isDefinitive: (status: number) => status === 404 };
    expect(afterAnswer(undefined, own(404), callee)).toMatchObject({ kind: 'done', outcome: 'rejected' });
    expect(afterAnswer(undefined, own(422), callee)).toMatchObject({ kind: 'pending' });
  });

  test('that never came leaves the call owed', () => {
    expect(afterAnswer(undefined, { kind: 'failed', why: 'gone' }, bridged)).toMatchObject({ kind: 'pending' });
  });

  test('means one thing whatever the status; only 2xx is done, only 4xx is rejected', () => {
    fc.assert(
      fc.property(fc.integer({ min: 100, max: 599 }), (status) => {
        const meaning = meaningOf(status, isDefinitiveOfBridged);
        expect(meaning === 'done').toBe(status >= 200 && status < 300);
        // What is refused for the moment, taken for good, loses the effect: 419, 423, 424, 440, 449, 499 among them.
        expect(meaning === 'rejected').toBe([400, 410, 422].includes(status));
        // To a wrapped endpoint none of these is an outcome.
        expect(afterAnswer(undefined, own(status)).kind).toBe('pending');
      }),
    );
  });
});

test('a connection that was not there is told from a fault of the call', async () => {
  const refused = await fetch('http://127.0.0.1:65533/').catch((error: unknown) => error);
  expect(isUnanswered(refused)).toBe(true);
  expect(isUnanswered(AbortSignal.timeout(0).reason ?? new DOMException('late', 'TimeoutError'))).toBe(true);
  expect(isUnanswered(Object.assign(new Error('no'), { code: 'ECONNRESET' }))).toBe(true);
  expect(isUnanswered(new TypeError('undefined is not a function'))).toBe(false);
  expect(isUnanswered('text')).toBe(false);
});

test('isDefinitive is for bridged endpoints only, and there are two kinds', () => {
  const rest = { name: 'a', consumer: 'b', order: 'none', rpc: [] } as const;
  expect(() => defineSwitchover({ ...rest, isDefinitive: () => true })).toThrow(/isDefinitive/);
  expect(() => defineSwitchover({ ...rest, endpoint: 'other' as never })).toThrow(/endpoint/);
});

test('what is kept of an answer never makes its effect fail: a bigint is its digits, a cycle is nothing', () => {
  const cycle: Record<string, unknown> = {};
  cycle['itself'] = cycle;
  expect([keptJson({ id: 12n }), keptJson(cycle), keptJson(undefined)]).toEqual(['{"id":"12"}', undefined, undefined]);
});
