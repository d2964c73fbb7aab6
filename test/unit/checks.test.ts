import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { lowerBound, upperBound } from '../../src/switchover/checks/bounds.ts';
import { defaultCheckRules } from '../../src/switchover/checks/check-rules.ts';
import type { CheckRules } from '../../src/switchover/checks/check-rules.ts';
import { judge } from '../../src/switchover/checks/checks.ts';
import type { CheckFacts } from '../../src/switchover/checks/checks.ts';
import type { CheckVerdict } from '../../src/switchover/checks/findings.ts';
import { evidence, facts, shadow } from './fixtures/check-facts.ts';

const rank: Record<CheckVerdict, number> = { 'not-ready': 0, inconclusive: 1, ready: 2 };
const verdictOf = (target: 'shadow' | 'ramp' | 'event' | 'done' | 'rpc', given: CheckFacts, rules?: CheckRules) =>
  judge(target, given, rules).verdict;
const finding = (target: 'shadow' | 'ramp' | 'event' | 'done' | 'rpc', given: CheckFacts, check: string) =>
  judge(target, given).findings.find((each) => each.check === check);

describe('the 95 % bounds of a rate', () => {
  // Exact values: 1 − 0.05^(1/n) without a hit; the others from sums of exact fractions.
  test.each([
    [0, 100, 0.029513],
    [0, 298, 0.010003],
    [0, 299, 0.009969],
    [1, 100, 0.046558],
    [5, 100, 0.102253],
    [50, 100, 0.586378],
    [100, 100, 1],
    [0, 0, 1],
  ])('%i of %i: at most %d', (hits, of, bound) => {
    expect(upperBound(hits, of)).toBeCloseTo(bound, 5);
  });

  test('hold the rate between them, rise with each hit, and are finite for large numbers', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 200_000 }), fc.double({ min: 0, max: 1, noNaN: true }), (of, share) => {
        const hits = Math.floor(of * share);
        const [low, high] = [lowerBound(hits, of), upperBound(hits, of)];
        expect(low).toBeLessThanOrEqual(hits / of + 1e-9);
        expect(high).toBeGreaterThanOrEqual(hits / of - 1e-9);
        if (hits < of) expect(upperBound(hits + 1, of)).toBeGreaterThanOrEqual(high - 1e-9);
      }),
      { numRuns: 200 },
    );
  });
});

describe('what is asked for each stage', () => {
  test('shadow: a consumer that runs and has caught up, with its start recorded', () => {
    expect(verdictOf('shadow', facts({ stage: 'rpc' }))).toBe('ready');
    expect(verdictOf('shadow', facts({ stage: 'rpc', running: false }))).toBe('not-ready');
    expect(verdictOf('shadow', facts({ stage: 'rpc', running: undefined }))).toBe('inconclusive');
    expect(verdictOf('shadow', facts({ stage: 'rpc', sinceRecorded: false }))).toBe('not-ready');
    const behind = (lag: number, idleMs = 0) => facts({ partitions: [{ topic: 'orders', partition: 0, lag, idleMs }] });
    expect(verdictOf('shadow', behind(100))).toBe('ready');
    expect(verdictOf('shadow', behind(101))).toBe('not-ready');
    expect(verdictOf('shadow', behind(1, 60_001))).toBe('not-ready');
    expect(verdictOf('shadow', facts({ partitions: [] }))).toBe('inconclusive');
  });

  test('ramp and event from shadow: deliveries and decisions', () => {
    const seen = (deliveries: Partial<ReturnType<typeof shadow>['deliveries']>) =>
      facts({ evidence: evidence({ shadow: shadow({ deliveries }) }) });
    for (const target of ['ramp', 'event'] as const) {
      expect(verdictOf(target, facts())).toBe('ready');
      expect(verdictOf(target, seen({ arrived: 99 }))).toBe('inconclusive');
      expect(verdictOf(target, seen({ missing: 1 }))).toBe('not-ready');
      expect(verdictOf(target, seen({ undecodable: 1 }))).toBe('not-ready');
      expect(verdictOf(target, seen({ delayMs: { p50: 5, p99: 30_001 } }))).toBe('not-ready');
      expect(verdictOf(target, seen({ delayMs: { p50: null, p99: null } }))).toBe('inconclusive');
      expect(verdictOf(target, facts({ stage: 'rpc' }))).toBe('inconclusive');
      expect(verdictOf(target, facts({ evidence: evidence({ shadow: undefined }) }))).toBe('inconclusive');
    }
    // Order counts only where it is promised.
    const mixed = { evidence: evidence({ shadow: shadow({ deliveries: { outOfOrder: 1 } }) }) };
    expect(verdictOf('event', facts({ ...mixed, order: 'key' }))).toBe('not-ready');
    expect(verdictOf('event', facts({ ...mixed, order: 'none' }))).toBe('ready');
  });

  test('decisions: by the upper bound of the rate; not compared is said, and blocks only if it is asked for', () => {
    const compared = (matched: number, mismatched: number) =>
      facts({
        evidence: evidence({ shadow: shadow({ decisions: { compared: matched + mismatched, matched, mismatched } }) }),
      });
    expect(verdictOf('event', compared(299, 0))).toBe('ready');
    expect(verdictOf('event', compared(298, 0))).toBe('inconclusive');
    expect(verdictOf('event', compared(299, 1))).toBe('inconclusive');
    expect(verdictOf('event', compared(50, 50))).toBe('not-ready');
    expect(finding('event', compared(50, 50), 'mismatches')).toMatchObject({ value: '50 of 100', limit: '1 %' });
    expect(finding('event', compared(0, 0), 'decisions')?.why).toContain('not compared');
    expect(verdictOf('event', compared(0, 0))).toBe('ready');
    expect(verdictOf('event', compared(0, 0), { decisions: 'required' })).toBe('inconclusive');
    expect(verdictOf('event', compared(299, 0), { variants: ['gift'] })).toBe('inconclusive');
    const gift = (compared: number, expected: boolean) =>
      facts({
        evidence: evidence({
          shadow: shadow({
            decisions: { compared: 299, matched: 299 },
            variants: [{ variant: 'gift', compared, expected }],
          }),
        }),
      });
    expect(verdictOf('event', gift(0, true))).toBe('inconclusive');
    expect(verdictOf('event', gift(0, false))).toBe('ready');
    expect(verdictOf('event', gift(3, true), { variants: ['gift'] })).toBe('ready');
  });

  test('further from ramp: events that had their effect', () => {
    const applied = (count: number) =>
      facts({
        stage: 'ramp',
        evidence: evidence({
          outcomes: [{ path: 'event', outcome: 'applied', count, newest: '2026-01-01T00:00:00Z' }],
        }),
      });
    expect(verdictOf('event', applied(20))).toBe('ready');
    expect(verdictOf('event', applied(19))).toBe('inconclusive');
  });

  test('done: a week in event, nobody else calling, nothing left', () => {
    const done = (given: Partial<CheckFacts> = {}) => facts({ stage: 'event', inStageMs: 7 * 86_400_000, ...given });
    expect(verdictOf('done', done())).toBe('ready');
    expect(verdictOf('done', done({ inStageMs: 7 * 86_400_000 - 1 }))).toBe('not-ready');
    expect(verdictOf('done', done({ stage: 'ramp' }))).toBe('not-ready');
    expect(verdictOf('done', done({ owedCalls: 1 }))).toBe('not-ready');
    const called = (days: number) => ({
      evidence: evidence({
        callers: [
          {
            endpoint: 'POST /confirmations',
            service: 'billing',
            address: '10.0.0.7',
            calls: 3,
            firstAt: '2026-01-01T00:00:00Z',
            lastAt: '2026-01-01T00:00:00Z',
            ageMs: days * 86_400_000,
          },
        ],
      }),
    });
    expect(verdictOf('done', done(called(6.9)))).toBe('not-ready');
    expect(finding('done', done(called(1)), 'unknown-callers')?.why).toContain('billing');
    expect(verdictOf('done', done(called(7)))).toBe('ready');
    expect(verdictOf('done', done({ evidence: evidence({ endpoints: [] }) }))).toBe('inconclusive');
    // One of two is watched since yesterday: who called it the day before, nobody knows.
    const since = (...firstAt: string[]) =>
      done({ evidence: evidence({ endpoints: firstAt.map((at) => ({ endpoint: `POST /${at}`, firstAt: at })) }) });
    expect(verdictOf('done', since('2025-12-01T00:00:00Z', '2025-12-31T00:00:00Z'))).toBe('inconclusive');
    expect(verdictOf('done', since('2025-12-01T00:00:00Z', '2025-12-25T00:00:00Z'))).toBe('ready');
    expect(verdictOf('done', done({ endpoint: 'bridged' }))).toBe('inconclusive');
  });

  test('back: nothing, but a bridged endpoint with an order must be drained', () => {
    expect(judge('rpc', facts({ running: false }))).toEqual({ verdict: 'ready', findings: [] });
    const bridged = (lag: number) =>
      facts({ endpoint: 'bridged', order: 'key', partitions: [{ topic: 'orders', partition: 0, lag }] });
    expect([verdictOf('rpc', bridged(0)), verdictOf('rpc', bridged(1))]).toEqual(['ready', 'not-ready']);
    expect(verdictOf('ramp', bridged(0))).toBe('not-ready');
    // No shadow is possible there, and none is asked for.
    expect(
      verdictOf('event', facts({ endpoint: 'bridged', stage: 'rpc', evidence: evidence({ shadow: undefined }) })),
    ).toBe('ready');
  });

  test('without access to the consumer nothing is ready, and how to give it is said', () => {
    for (const target of ['ramp', 'event', 'done'] as const) {
      const { verdict, findings } = judge(
        target,
        facts({ stage: target === 'done' ? 'event' : 'shadow', inStageMs: 1e12, evidence: undefined }),
      );
      expect(verdict).toBe('inconclusive');
      expect(findings.some(({ remedy }) => remedy.includes('consumerDatabases'))).toBe(true);
    }
  });
});

// ── Properties ───────────────────────────────────────────────────────────────────────────────────────────────────────

const count = fc.oneof(fc.constant(0), fc.nat({ max: 500 }));
const anyFacts = fc.record({
  stage: fc.constantFrom<CheckFacts['stage']>('rpc', 'shadow', 'ramp', 'event'),
  order: fc.constantFrom<CheckFacts['order']>('key', 'none'),
  endpoint: fc.constantFrom<CheckFacts['endpoint']>('wrapped', 'bridged'),
  inStageMs: fc.nat({ max: 20 * 86_400_000 }),
  sinceRecorded: fc.boolean(),
  running: fc.boolean(),
  undeclaredEvents: count,
  owedCalls: count,
  failingCalls: count,
  lag: count,
  arrived: count,
  missing: count,
  undecodable: count,
  outOfOrder: count,
  p99: fc.nat({ max: 60_000 }),
  matched: fc.nat({ max: 2_000 }),
  mismatched: count,
  parked: count,
  dead: count,
  alarms: count,
  applied: count,
  callers: count,
});
type Plain = typeof anyFacts extends fc.Arbitrary<infer Value> ? Value : never;

function toFacts(plain: Plain): CheckFacts {
  const { stage, order, endpoint, inStageMs, sinceRecorded, running, undeclaredEvents, owedCalls, failingCalls } =
    plain;
  const at = '2026-01-01T00:00:00Z';
  return facts({
    stage,
    order,
    endpoint,
    inStageMs,
    sinceRecorded,
    running,
    undeclaredEvents,
    owedCalls,
    failingCalls,
    partitions: [{ topic: 'orders', partition: 0, lag: plain.lag }],
    evidence: evidence({
      parked: plain.parked,
      dead: plain.dead,
      heldCount: plain.parked,
      alarms: plain.alarms === 0 ? [] : [{ kind: 'sequence-hole', count: plain.alarms, within: 0, newest: at }],
      outcomes: [{ path: 'event', outcome: 'applied', count: plain.applied, newest: at }],
      callers: Array.from({ length: Math.min(plain.callers, 3) }, () => ({
        endpoint: 'x',
        service: 'y',
        address: 'z',
        calls: 1,
        firstAt: at,
        lastAt: at,
        ageMs: 1_000,
      })),
      shadow: shadow({
        deliveries: {
          arrived: plain.arrived,
          missing: plain.missing,
          undecodable: plain.undecodable,
          outOfOrder: plain.outOfOrder,
          delayMs: { p50: 1, p99: plain.p99 },
        },
        decisions: {
          compared: plain.matched + plain.mismatched,
          matched: plain.matched,
          mismatched: plain.mismatched,
        },
      }),
    }),
  });
}

/** Each makes one fact worse, and leaves the others as they are. */
const worse: { [Name in keyof Plain]?: (plain: Plain) => Plain } = {
  inStageMs: (plain) => ({ ...plain, inStageMs: Math.floor(plain.inStageMs / 2) }),
  sinceRecorded: (plain) => ({ ...plain, sinceRecorded: false }),
  running: (plain) => ({ ...plain, running: false }),
  arrived: (plain) => ({ ...plain, arrived: Math.floor(plain.arrived / 2) }),
  applied: (plain) => ({ ...plain, applied: Math.floor(plain.applied / 2) }),
  // One that matched doesn't.
  matched: (plain) =>
    plain.matched === 0 ? plain : { ...plain, matched: plain.matched - 1, mismatched: plain.mismatched + 1 },
};
for (const name of [
  'undeclaredEvents',
  'owedCalls',
  'failingCalls',
  'lag',
  'missing',
  'undecodable',
  'outOfOrder',
  'p99',
  'parked',
  'dead',
  'alarms',
  'callers',
] as const) {
  worse[name] = (plain) => ({ ...plain, [name]: plain[name] + 1 });
}

const targets = fc.constantFrom('shadow', 'ramp', 'event', 'done', 'rpc') as fc.Arbitrary<'event'>;

describe('judge', () => {
  test('never gives a better verdict for worse facts', () => {
    const changes = Object.values(worse);
    fc.assert(
      fc.property(targets, anyFacts, fc.nat(), (target, plain, pick) => {
        const change = changes[pick % changes.length]!;
        expect(rank[verdictOf(target, toFacts(change(plain)))]).toBeLessThanOrEqual(
          rank[verdictOf(target, toFacts(plain))],
        );
      }),
      { numRuns: 5_000 },
    );
  });

  test('never says ready on too little data', () => {
    fc.assert(
      fc.property(fc.constantFrom('ramp', 'event') as fc.Arbitrary<'event'>, anyFacts, (target, plain) => {
        const fromShadow = plain.stage === 'rpc' || plain.stage === 'shadow';
        const tooLittle =
          plain.endpoint === 'wrapped' &&
          (plain.stage === 'rpc' ||
            (fromShadow && plain.arrived < defaultCheckRules.minDeliveries) ||
            (fromShadow && plain.matched + plain.mismatched > 0 && plain.matched + plain.mismatched < 299) ||
            (!fromShadow && plain.applied < defaultCheckRules.minEffects));
        if (tooLittle) expect(verdictOf(target, toFacts(plain))).not.toBe('ready');
      }),
      { numRuns: 5_000 },
    );
  });

  test('never says ready on too little data, when all else is well', () => {
    const shadowed = (deliveries: object, decisions: object) =>
      facts({ evidence: evidence({ shadow: shadow({ deliveries, decisions }) }) });
    const compared = (matched: number, mismatched: number) => ({ compared: matched + mismatched, matched, mismatched });
    fc.assert(
      fc.property(
        fc.nat({ max: 99 }),
        fc.integer({ min: 1, max: 298 }),
        fc.nat({ max: 19 }),
        (arrived, matched, count) => {
          expect(verdictOf('event', shadowed({ arrived }, {}))).toBe('inconclusive');
          expect(verdictOf('event', shadowed({}, compared(matched, 0)))).toBe('inconclusive');
          const outcomes = [{ path: 'event' as const, outcome: 'applied', count, newest: '2026-01-01T00:00:00Z' }];
          expect(verdictOf('event', facts({ stage: 'ramp', evidence: evidence({ outcomes }) }))).toBe('inconclusive');
        },
      ),
    );
  });

  test('gives a remedy for everything that is not ready, and says the number', () => {
    fc.assert(
      fc.property(targets, anyFacts, (target, plain) => {
        for (const each of judge(target, toFacts(plain)).findings) {
          expect(each.why).not.toBe('');
          expect(each.remedy === '').toBe(each.verdict === 'ready');
        }
      }),
      { numRuns: 1_000 },
    );
  });
});
