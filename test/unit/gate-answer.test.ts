import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { pauseBeforeNextLook } from '../../src/switchover/endpoint/early-wait.ts';
import { answerTo, handlerAnswer, outcomeOf } from '../../src/switchover/endpoint/gate-answer.ts';
import type { HandlerAnswer } from '../../src/switchover/endpoint/gate-answer.ts';
import { saysNothing } from '../../src/switchover/index.ts';

const own = (status: number, more: Partial<HandlerAnswer> = {}): HandlerAnswer => ({
  status,
  headers: {},
  body: Buffer.from('{}'),
  ...more,
});
const outcome = (answer: HandlerAnswer, isDefinitive?: (status: number) => boolean) =>
  outcomeOf(answer, isDefinitive, 1_000)?.outcome;

describe('what an answer of a handler says of the effect', () => {
  test('of all refusals, few are for good', () => {
    const statuses = Array.from({ length: 400 }, (_, index) => 200 + index);
    expect(statuses.filter((status) => outcome(own(status)) === 'rejected')).toEqual([400, 404, 410, 422]);
    expect(statuses.filter((status) => outcome(own(status)) === 'applied')).toHaveLength(100);
  });

  test('a 404 of nobody says nothing', () => {
    expect(outcome(own(404, { handled: false }))).toBeUndefined();
  });

  test('the endpoint’s word on a status is before that of the protocol, and that before the list', () => {
    expect(outcome(own(409, { definitive: true }))).toBe('rejected');
    expect(outcome(own(422, { definitive: false }))).toBeUndefined();
    expect(outcome(own(409, { definitive: true }), () => false)).toBeUndefined();
    expect(outcome(own(409), (status) => status === 409)).toBe('rejected');
    // Never of a failure.
    expect(outcome(own(500, { definitive: true }), () => true)).toBeUndefined();
  });

  test('whatever its status: nothing, if a gate has refused', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 100, max: 599 }),
        fc.constantFrom('turnout-error', 'Turnout-Error'),
        (status, name) => {
          expect(outcome(own(status, { headers: { [name]: 'TURNOUT_EFFECT_RUNNING' } }), () => true)).toBeUndefined();
        },
      ),
    );
  });

  test('a handler speaks for no gate: what sounds so is neither sent nor kept', () => {
    const given = own(200, {
      headers: { 'turnout-outcome': 'rejected', 'Turnout-Answer': 'none', 'x-mail': 'queued' },
    });
    expect(handlerAnswer(given, { 'turnout-outcome': 'applied' })).toMatchObject({
      answer: { headers: { 'x-mail': 'queued' } },
      headers: { 'turnout-outcome': 'applied' },
      withheld: ['turnout-outcome', 'Turnout-Answer'],
    });
    expect(outcomeOf(given, undefined, 1_000)).toMatchObject({ answer: { headers: { 'x-mail': 'queued' } } });
    const passedOn = own(409, { headers: { 'turnout-error': 'TURNOUT_EFFECT_EARLY', 'turnout-last-number': '1.1' } });
    expect(handlerAnswer(passedOn)).toMatchObject({ withheld: ['turnout-last-number'] });
  });
});

describe('a repeat of what nobody answered', () => {
  const repeat = answerTo({ kind: 'done', outcome: 'applied', repeated: true, answer: null }, undefined);

  test('says so in a header, for a message of default values does not', () => {
    expect(repeat).toMatchObject({
      status: 200,
      headers: { 'turnout-answer': 'none', 'turnout-outcome': 'duplicate' },
    });
    const headers = { 'turnout-answer': 'none', 'turnout-outcome': 'duplicate' };
    // As gRPC's and Connect's clients give the empty message.
    for (const body of [{}, { queued: false }, { $typeName: 'mail.Queued', queued: false }, { id: 7n }])
      expect(saysNothing('duplicate', { status: 200, headers, body })).toBe(true);
    expect(saysNothing('duplicate', { status: 200, headers: {}, body: { queued: false } })).toBe(false);
    expect(saysNothing('applied', { status: 200, headers: {}, body: {} })).toBe(false);
  });
});

test('whoever waits looks often enough, out of step, and last at the end of the wait', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 10_000 }),
      fc.array(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), { minLength: 1 }),
      (waitMs, randoms) => {
        let atMs = 0;
        for (let look = 0; atMs < waitMs; look++) {
          const pause = pauseBeforeNextLook(look, waitMs - atMs, randoms[look % randoms.length]!);
          expect(pause).toBeLessThanOrEqual(40);
          expect(pause).toBeGreaterThanOrEqual(Math.min(1, waitMs - atMs));
          atMs += pause;
        }
        expect(atMs).toBeLessThan(waitMs + 1);
      },
    ),
  );
  expect(pauseBeforeNextLook(5, 1_000, 0)).not.toBe(pauseBeforeNextLook(5, 1_000, 0.5));
});
