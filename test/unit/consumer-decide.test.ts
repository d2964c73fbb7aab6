import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { afterFailure, countSequence, planFor, startPositions } from '../../src/consumer/index.ts';
import type { Circumstances, SequenceFinding, SequenceState } from '../../src/consumer/index.ts';

const sequenceOf = (generation: number, number: number) => ({ generation, number: BigInt(number) });

/** Counts a run of numbers of one source, as the consumer does. */
function countAll(sequences: readonly { generation: number; number: bigint }[]): SequenceFinding[] {
  let state: SequenceState | undefined;
  return sequences.map((sequence) => {
    const finding = countSequence(state, sequence);
    if (finding.kind === 'next' || finding.kind === 'hole') state = finding.state;
    return finding;
  });
}

describe('countSequence', () => {
  test('finds nothing in a dense run, wherever it starts', () => {
    fc.assert(
      fc.property(
        fc.nat(1_000),
        fc.integer({ min: 1, max: 50 }),
        fc.integer({ min: 1, max: 9 }),
        (base, length, generation) => {
          const run = Array.from({ length }, (_, index) => sequenceOf(generation, base + 1 + index));
          expect(countAll(run).every((finding) => finding.kind === 'next')).toBe(true);
        },
      ),
    );
  });

  test('names exactly the numbers that are missing, however many repeats come between', () => {
    const arbitrary = fc.record({
      base: fc.nat(50),
      kept: fc.array(fc.boolean(), { minLength: 1, maxLength: 40 }),
      repeats: fc.array(fc.nat(100), { maxLength: 20 }),
    });
    fc.assert(
      fc.property(arbitrary, ({ base, kept, repeats }) => {
        const present = kept.flatMap((isKept, index) => (isKept || index === 0 ? [base + 1 + index] : []));
        // Replays: runs that were sent once are sent again, somewhere later.
        const sent = [...present];
        for (const repeat of repeats) {
          const at = repeat % (sent.length + 1);
          if (at > 0) sent.splice(at, 0, sent[(repeat * 7) % at]!);
        }
        const missing = new Set<number>();
        for (const finding of countAll(sent.map((number) => sequenceOf(1, number)))) {
          if (finding.kind !== 'hole') continue;
          for (let number = finding.from; number <= finding.to; number++) missing.add(Number(number));
        }
        const expected = new Set<number>();
        for (let number = present[0]!; number <= present.at(-1)!; number++)
          if (!present.includes(number)) expected.add(number);
        expect(missing).toEqual(expected);
      }),
    );
  });

  test('knows every number from the base on as a repeat once it was passed, and those below as from before', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 2, max: 100 }),
        fc.nat(50),
        fc.integer({ min: 1, max: 200 }),
        (base, further, number) => {
          const state = { generation: 3, base: BigInt(base), last: BigInt(base + further) };
          const { kind } = countSequence(state, sequenceOf(3, number));
          if (number < base) expect(kind).toBe('before-base');
          else if (number <= base + further) expect(kind).toBe('repeat');
          else expect(kind).toBe(number === base + further + 1 ? 'next' : 'hole');
        },
      ),
    );
  });

  test('counts a new generation from 1, and knows the older one as past', () => {
    const state = { generation: 2, base: 10n, last: 20n };
    expect(countSequence(state, sequenceOf(3, 1))).toEqual({
      kind: 'next',
      state: { generation: 3, base: 1n, last: 1n },
    });
    expect(countSequence(state, sequenceOf(3, 4))).toMatchObject({ kind: 'hole', from: 1n, to: 3n });
    expect(countSequence(state, sequenceOf(1, 21))).toEqual({ kind: 'repeat' });
  });

  test('is off without a sequence', () => {
    expect(countSequence({ generation: 1, base: 1n, last: 5n }, undefined)).toEqual({ kind: 'off' });
  });
});

const stamps = fc.option(
  fc.record({
    consumer: fc.constant('email'),
    route: fc.constantFrom('rpc' as const, 'event' as const),
    epoch: fc.nat(9),
    shadow: fc.boolean(),
    turn: fc.option(fc.record({ generation: fc.nat(3), number: fc.nat(9) }), { nil: undefined }),
  }),
  { nil: undefined },
);
const findings: fc.Arbitrary<SequenceFinding> = fc.constantFrom<SequenceFinding>(
  { kind: 'off' },
  { kind: 'next', state: { generation: 1, base: 1n, last: 1n } },
  { kind: 'repeat' },
  { kind: 'before-base' },
);
const circumstances: fc.Arbitrary<Circumstances> = fc.record({
  offset: fc.bigInt(0n, 9n),
  since: fc.bigInt(0n, 9n),
  finding: findings,
  stamp: stamps,
  inSwitchover: fc.boolean(),
  handler: fc.constantFrom('present' as const, 'other-version' as const, 'none' as const),
  refused: fc.option(fc.constant('too large'), { nil: undefined }),
});

describe('planFor', () => {
  test('never applies what lies below the start, what goes by call, or what has no route in a switchover', () => {
    fc.assert(
      fc.property(circumstances, (given) => {
        const { kind } = planFor(given);
        const mustNot =
          given.offset < given.since ||
          given.finding.kind === 'before-base' ||
          given.stamp?.route === 'rpc' ||
          (given.stamp === undefined && given.inSwitchover);
        if (mustNot) expect(kind).toBe('observe');
      }),
    );
  });

  test('never passes over what was routed here, or has a handler', () => {
    fc.assert(
      fc.property(circumstances, (given) => {
        if (given.offset < given.since || given.finding.kind === 'before-base') return;
        const owed =
          given.stamp?.route === 'event' ||
          (given.stamp === undefined && !given.inSwitchover && given.handler !== 'none');
        expect(planFor(given).kind === 'observe').toBe(!owed);
      }),
    );
  });

  test('applies only with a handler for this version, and carries the key number', () => {
    fc.assert(
      fc.property(circumstances, (given) => {
        const plan = planFor(given);
        if (plan.kind === 'observe') return;
        expect(plan.turn).toEqual(given.stamp?.turn);
        if (plan.kind === 'apply') {
          expect(given.handler).toBe('present');
          expect(given.refused).toBeUndefined();
          const expected = given.finding.kind === 'repeat' ? 'passed' : given.finding.kind === 'off' ? 'none' : 'new';
          expect(plan.sequence).toBe(expected);
        }
      }),
    );
  });
});

describe('afterFailure', () => {
  test('gives up after exactly as many failures of the handler as there are attempts, whatever came between', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 9 }),
        fc.array(fc.constantFrom('handler' as const, 'conflict' as const, 'outage' as const), { maxLength: 30 }),
        (attempts, kinds) => {
          const failures = { handler: 0, conflict: 0, outage: 0 };
          for (const kind of kinds) {
            failures[kind]++;
            const { kind: next } = afterFailure(kind, failures, attempts);
            if (kind === 'outage' || (kind === 'conflict' && failures.conflict <= 20)) expect(next).toBe('retry');
            else if (failures.conflict <= 20) expect(next).toBe(failures.handler < attempts ? 'retry' : 'give-up');
          }
        },
      ),
    );
  });

  test('takes endless conflicts for the handler’s doing', () => {
    expect(afterFailure('conflict', { handler: 0, conflict: 25, outage: 0 }, 5).kind).toBe('give-up');
  });
});

describe('startPositions', () => {
  const bounds = [
    { partition: 0, low: 5n, high: 9n },
    { partition: 1, low: 0n, high: 0n },
  ];

  test('starts a new consumer at the beginning or at the end', () => {
    const given = { bounds, known: new Set<number>(), committed: new Map<number, bigint>() };
    expect(startPositions({ ...given, from: 'beginning' })).toEqual(
      new Map([
        [0, 5n],
        [1, 0n],
      ]),
    );
    expect(startPositions({ ...given, from: 'now' })).toEqual(
      new Map([
        [0, 9n],
        [1, 0n],
      ]),
    );
  });

  test('takes over where the group has committed', () => {
    expect(startPositions({ from: 'now', bounds, known: new Set(), committed: new Map([[0, 7n]]) })).toEqual(
      new Map([
        [0, 7n],
        [1, 0n],
      ]),
    );
  });

  test('reads partitions that were added after the group’s first commit from their start', () => {
    const grown = [...bounds, { partition: 2, low: 0n, high: 30n }, { partition: 3, low: 4n, high: 6n }];
    const committed = new Map([
      [0, 7n],
      [1, 0n],
    ]);
    for (const from of ['now', 'beginning'] as const) {
      // Partition 3 has lost messages already; at 0 the source says so, instead of passing them over.
      expect(startPositions({ from, bounds: grown, known: new Set(), committed })).toEqual(
        new Map([
          [0, 7n],
          [1, 0n],
          [2, 0n],
          [3, 0n],
        ]),
      );
    }
  });

  test('reads partitions that were added later from their start, and leaves the others alone', () => {
    expect(startPositions({ from: 'now', bounds, known: new Set([1]), committed: new Map([[0, 7n]]) })).toEqual(
      new Map([[0, 0n]]),
    );
  });
});
