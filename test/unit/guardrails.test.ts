import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  breached,
  defaultGuardrailRules,
  guardrailAction,
  guardrailWindowMs,
} from '../../src/switchover/checks/guardrails.ts';
import type { GuardrailFacts, GuardrailRules } from '../../src/switchover/checks/guardrails.ts';
import { evidence } from './fixtures/check-facts.ts';

const at = '2026-01-01T00:00:00Z';
const seen = (
  given: { applied?: number; parked?: number; dead?: number; holes?: number; old?: number; withinMs?: number } = {},
) =>
  evidence({
    withinMs: given.withinMs ?? 60_000,
    outcomes: [{ path: 'event', outcome: 'applied', count: given.applied ?? 1_000, newest: at }],
    parked: given.parked ?? 0,
    parkedWithin: given.parked ?? 0,
    dead: given.dead ?? 0,
    alarms: [
      { kind: 'sequence-hole', count: (given.holes ?? 0) + (given.old ?? 0), within: given.holes ?? 0, newest: at },
    ],
  });
const facts = (given: Partial<GuardrailFacts> = {}): GuardrailFacts => ({
  inStageMs: 600_000,
  evidence: seen(),
  unreadMs: 0,
  downMs: 0,
  failedReadings: 0,
  ...given,
});
const rulesOf = (given: GuardrailFacts, rules?: GuardrailRules) =>
  breached(given, rules).breaches.map(({ rule }) => rule);

describe('breached', () => {
  test('says fine when all is well', () => {
    expect(breached(facts())).toEqual({ verdict: 'fine', breaches: [], unknown: [], blind: false });
  });

  test('counts parked and dead events against what was handled, and leaves a few alone', () => {
    const failing = (applied: number, parked: number, dead = 0) => facts({ evidence: seen({ applied, parked, dead }) });
    expect(rulesOf(failing(0, 2))).toEqual([]);
    expect(rulesOf(failing(0, 3))).toEqual(['failed']);
    expect(rulesOf(failing(297, 3))).toEqual([]);
    expect(rulesOf(failing(296, 3))).toEqual(['failed']);
    expect(rulesOf(failing(100, 1, 2))).toEqual(['failed']);
    expect(rulesOf(failing(0, 3), { maxFailedPercent: false })).toEqual([]);
    expect(rulesOf(failing(0, 1), { minFailed: 0 })).toEqual(['failed']);
  });

  test('counts refusals when their share is surely too large, and events that are held for too long', () => {
    const of = (applied: number, rejected: number, skipped = 0) =>
      facts({
        evidence: evidence({
          withinMs: 60_000,
          outcomes: [
            { path: 'event', outcome: 'applied', count: applied, newest: at },
            { path: 'event', outcome: 'rejected', count: rejected, newest: at },
            { path: 'event', outcome: 'skipped', count: skipped, newest: at },
            { path: 'rpc', outcome: 'applied', count: 50_000, newest: at },
          ],
        }),
      });
    expect(rulesOf(of(0, 5_000, 5_000))).toEqual(['rejected']);
    expect(rulesOf(of(70, 30))).toEqual([]);
    expect(rulesOf(of(700, 300))).toEqual(['rejected']);
    expect(rulesOf(of(700, 300), { maxRejectedPercent: 50 })).toEqual([]);
    expect(rulesOf(of(0, 5_000), { maxRejectedPercent: false })).toEqual([]);
    const waiting = (waitingMs: number) => facts({ evidence: { ...seen(), waitingMs } });
    expect([rulesOf(waiting(300_000)), rulesOf(waiting(300_001))]).toEqual([[], ['held']]);
  });

  test('tells no share of more outcomes than are counted, unless most have failed', () => {
    const many = (parked: number) => breached(facts({ evidence: seen({ applied: 100_000, parked }) })).verdict;
    expect([many(1_000), many(12_000), many(100_001)]).toEqual(['fine', 'inconclusive', 'breached']);
  });

  test('counts new alarms only', () => {
    expect(rulesOf(facts({ evidence: seen({ holes: 1 }) }))).toEqual(['alarms']);
    expect(rulesOf(facts({ evidence: seen({ old: 5 }) }))).toEqual([]);
    expect(rulesOf(facts({ evidence: seen({ holes: 1 }) }), { maxAlarms: 1 })).toEqual([]);
  });

  test('is told of unread events and of a consumer that is down, for no longer than the stage is old', () => {
    expect(rulesOf(facts({ unreadMs: 120_001 }))).toEqual(['unread']);
    expect(rulesOf(facts({ downMs: 60_001 }))).toEqual(['down']);
    // A day's backlog of shadow is not what this stage did.
    const young = { inStageMs: 5_000, evidence: seen({ withinMs: 5_000 }) };
    expect(rulesOf(facts({ ...young, unreadMs: 86_400_000, downMs: 86_400_000 }))).toEqual([]);
  });

  test('does not count what happened before the stage was set', () => {
    const given = facts({
      inStageMs: 5_000,
      evidence: seen({ applied: 0, parked: 50, holes: 3, withinMs: 3_600_000 }),
    });
    expect(breached(given)).toMatchObject({ verdict: 'inconclusive', breaches: [] });
    expect(guardrailWindowMs(5_000)).toBe(5_000);
    expect(guardrailWindowMs(86_400_000)).toBe(3_600_000);
  });

  test('without data nothing is breached, and it is said', () => {
    const nothing = facts({ evidence: undefined, unreadMs: undefined, downMs: undefined });
    expect(breached(nothing)).toMatchObject({ verdict: 'inconclusive', breaches: [], blind: false });
    expect(breached(nothing).unknown).toHaveLength(3);
    expect(breached(facts({ evidence: seen({ applied: 0 }) })).unknown).toEqual(['no event was handled yet']);
  });

  test('is blind after some readings that failed, and goes back for it only if told to', () => {
    const blind = facts({ evidence: undefined, failedReadings: 5 });
    expect(breached(facts({ evidence: undefined, failedReadings: 4 })).blind).toBe(false);
    expect(breached(blind)).toMatchObject({ verdict: 'inconclusive', blind: true });
    expect(rulesOf(blind, { whenBlind: 'step-back' })).toEqual(['blind']);
  });

  test('never holds less against worse facts', () => {
    const small = fc.nat({ max: 200 });
    fc.assert(
      fc.property(
        small,
        small,
        small,
        small,
        small,
        fc.nat({ max: 300_000 }),
        fc.nat({ max: 4 }),
        (applied, parked, dead, holes, downs, unread, pick) => {
          const given = { applied, parked, dead, holes };
          const make = (more: typeof given, ms: number, down: number) =>
            facts({ evidence: seen(more), unreadMs: ms, downMs: down * 1_000 });
          const changed = [
            make({ ...given, parked: parked + 1 }, unread, downs),
            make({ ...given, dead: dead + 1 }, unread, downs),
            make({ ...given, holes: holes + 1 }, unread, downs),
            make(given, unread + 1_000, downs),
            make(given, unread, downs + 1),
          ][pick]!;
          const before = rulesOf(make(given, unread, downs));
          expect(rulesOf(changed)).toEqual(expect.arrayContaining(before));
        },
      ),
      { numRuns: 2_000 },
    );
  });
});

describe('guardrailAction', () => {
  const verdict = breached(facts({ evidence: seen({ holes: 1 }) }));
  test('goes back from ramp and event, only tells in shadow, and has nothing to do elsewhere', () => {
    expect(guardrailAction('event', verdict)).toEqual({ kind: 'step-back', to: 'rpc' });
    expect(guardrailAction('ramp', verdict, { to: 'shadow' })).toEqual({ kind: 'step-back', to: 'shadow' });
    expect(guardrailAction('shadow', verdict)).toEqual({ kind: 'alert' });
    expect(guardrailAction('rpc', verdict)).toEqual({ kind: 'none' });
    expect(guardrailAction('done', verdict)).toEqual({ kind: 'none' });
    expect(guardrailAction('event', breached(facts()))).toEqual({ kind: 'none' });
  });

  test('the defaults are all there', () => {
    expect(Object.values(defaultGuardrailRules)).not.toContain(undefined);
  });
});
