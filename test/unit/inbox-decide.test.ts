import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { decide } from '../../src/inbox/index.ts';
import type { Decision, Gate, KnownEffect, Situation } from '../../src/inbox/index.ts';

const base: Situation = {
  eventId: 'a',
  path: 'event',
  requestHash: undefined,
  turn: undefined,
  tooOld: false,
  known: undefined,
  gate: undefined,
};
const known = (outcome: KnownEffect['outcome'], more: Partial<KnownEffect> = {}): KnownEffect => ({
  outcome,
  eventId: 'a',
  requestHash: undefined,
  leaseOver: false,
  ...more,
});
const gate = (lastNumber: number, generation = 1, halted?: string): Gate => ({ generation, lastNumber, halted });
const turn = (number: number, generation = 1) => ({ generation, number });

describe('decide', () => {
  test.each<[string, Partial<Situation>, Decision]>([
    ['unordered, unknown', {}, { kind: 'apply' }],
    ['unordered, unknown, older than the inbox', { tooOld: true }, { kind: 'skip' }],
    ['known as applied', { known: known('applied') }, { kind: 'repeat', outcome: 'applied' }],
    ['known as rejected', { known: known('rejected') }, { kind: 'repeat', outcome: 'rejected' }],
    ['known as skipped', { known: known('skipped') }, { kind: 'repeat', outcome: 'skipped' }],
    ['known as dead', { known: known('dead') }, { kind: 'repeat', outcome: 'dead' }],
    [
      'known, though its key is halted',
      { known: known('applied'), turn: turn(1), gate: gate(1, 1, 'why') },
      { kind: 'repeat', outcome: 'applied' },
    ],
    ['known for another event', { known: known('applied', { eventId: 'b' }) }, { kind: 'reused', what: 'event id' }],
    [
      'known for another body',
      { known: known('applied', { requestHash: 'x' }), requestHash: 'y', path: 'rpc' },
      { kind: 'reused', what: 'request body' },
    ],
    [
      'known from a call, again as an event',
      { known: known('applied', { requestHash: 'x' }) },
      { kind: 'repeat', outcome: 'applied' },
    ],
    ['an intent that may be running', { known: known('running') }, { kind: 'running' }],
    ['an intent whose writer must be dead', { known: known('running', { leaseOver: true }) }, { kind: 'apply' }],
    ['queued work, however old', { known: known('queued', { leaseOver: true }) }, { kind: 'running' }],
    ['the first of a key', { turn: turn(1) }, { kind: 'apply' }],
    ['the second of a key that was never seen', { turn: turn(2) }, { kind: 'early', generation: 1, lastNumber: 0 }],
    ['the next of a key', { turn: turn(8), gate: gate(7) }, { kind: 'apply' }],
    ['the next of a key, older than the inbox', { turn: turn(8), gate: gate(7), tooOld: true }, { kind: 'apply' }],
    ['one too far', { turn: turn(9), gate: gate(7) }, { kind: 'early', generation: 1, lastNumber: 7 }],
    ['at the last, unknown', { turn: turn(7), gate: gate(7) }, { kind: 'halt' }],
    [
      'at the last, unknown, older than the inbox',
      { turn: turn(7), gate: gate(7), tooOld: true },
      { kind: 'duplicate' },
    ],
    ['below the last, unknown', { turn: turn(3), gate: gate(7) }, { kind: 'halt' }],
    [
      'below the last, unknown, older than the inbox',
      { turn: turn(3), gate: gate(7), tooOld: true },
      { kind: 'duplicate' },
    ],
    ['the first of a higher generation', { turn: turn(1, 2), gate: gate(7) }, { kind: 'apply' }],
    [
      'a later one of a higher generation',
      { turn: turn(2, 2), gate: gate(7) },
      { kind: 'early', generation: 2, lastNumber: 0 },
    ],
    ['the next number of a lower generation', { turn: turn(8, 1), gate: gate(7, 2) }, { kind: 'halt' }],
    [
      'a lower generation, older than the inbox',
      { turn: turn(8, 1), gate: gate(7, 2), tooOld: true },
      { kind: 'duplicate' },
    ],
    ['the next of a halted key', { turn: turn(8), gate: gate(7, 1, 'why') }, { kind: 'halted', reason: 'why' }],
  ])('%s', (_, situation, decision) => {
    expect(decide({ ...base, ...situation })).toEqual(decision);
  });

  const situations: fc.Arbitrary<Situation> = fc.record({
    eventId: fc.constantFrom('a', 'b'),
    path: fc.constantFrom('rpc' as const, 'event' as const),
    requestHash: fc.constantFrom(undefined, 'x', 'y'),
    turn: fc.option(fc.record({ generation: fc.integer({ min: 1, max: 3 }), number: fc.integer({ min: 1, max: 5 }) }), {
      nil: undefined,
    }),
    tooOld: fc.boolean(),
    known: fc.option(
      fc.record({
        outcome: fc.constantFrom(
          'applied' as const,
          'rejected' as const,
          'skipped' as const,
          'dead' as const,
          'running' as const,
          'queued' as const,
        ),
        eventId: fc.constantFrom('a', 'b'),
        requestHash: fc.constantFrom(undefined, 'x', 'y'),
        leaseOver: fc.boolean(),
      }),
      { nil: undefined },
    ),
    gate: fc.option(
      fc.record({
        generation: fc.integer({ min: 1, max: 3 }),
        lastNumber: fc.integer({ min: 1, max: 5 }),
        halted: fc.constantFrom(undefined, 'why'),
      }),
      { nil: undefined },
    ),
  });

  test('an outcome is final, and nothing at or below the last number is applied', () => {
    fc.assert(
      fc.property(situations, (situation) => {
        const decision = decide(situation);
        if (decision.kind !== 'apply') return;
        const { known: before, gate: at, turn: mine } = situation;
        expect(before === undefined || (before.outcome === 'running' && before.leaseOver)).toBe(true);
        if (before !== undefined || mine === undefined) return;
        const last = at === undefined || mine.generation > at.generation ? 0 : at.lastNumber;
        expect(mine.generation).toBeGreaterThanOrEqual(at?.generation ?? 0);
        expect(mine.number).toBe(last + 1);
        expect(at?.halted).toBeUndefined();
      }),
      { numRuns: 5_000 },
    );
  });
});

describe('all orders of arrival', () => {
  // Four events of one key in two generations, each arriving once or twice by either path, in every order.
  interface Event {
    readonly id: string;
    readonly turn: { generation: number; number: number };
  }
  const events: Event[] = [
    { id: 'e1', turn: turn(1) },
    { id: 'e2', turn: turn(2) },
    { id: 'e3', turn: turn(3) },
  ];

  function run(order: readonly number[]): { applied: string[]; held: Set<string>; halted: boolean } {
    const outcomes = new Map<string, KnownEffect>();
    const held = new Map<string, Event>();
    const applied: string[] = [];
    let at: Gate | undefined;
    const arrive = (event: Event): void => {
      const decision = decide({
        ...base,
        eventId: event.id,
        turn: event.turn,
        known: outcomes.get(event.id),
        gate: at,
      });
      if (decision.kind === 'early') held.set(event.id, event);
      if (decision.kind === 'halt') at = { ...at!, halted: 'why' };
      if (decision.kind !== 'apply') return;
      applied.push(event.id);
      outcomes.set(event.id, known('applied', { eventId: event.id }));
      held.delete(event.id);
      at = gate(event.turn.number, event.turn.generation);
      const next = [...held.values()].find(({ turn: { number } }) => number === event.turn.number + 1);
      if (next !== undefined) arrive(next);
    };
    for (const index of order) arrive(events[index]!);
    return { applied, held: new Set(held.keys()), halted: at?.halted !== undefined };
  }

  function* orders(left: readonly number[]): Generator<number[]> {
    if (left.length === 0) yield [];
    for (const index of new Set(left)) {
      const rest = left.toSpliced(left.indexOf(index), 1);
      for (const tail of orders(rest)) yield [index, ...tail];
    }
  }

  test('apply each event once, in the order of its numbers', () => {
    let count = 0;
    for (const order of orders([0, 0, 1, 1, 2, 2])) {
      const { applied, held, halted } = run(order);
      expect({ order, applied, held: held.size, halted }).toEqual({
        order,
        applied: ['e1', 'e2', 'e3'],
        held: 0,
        halted: false,
      });
      count++;
    }
    expect(count).toBe(90);
  });

  test('hold what is ahead of a missing one', () => {
    for (const order of orders([0, 2, 2])) expect(run(order)).toMatchObject({ applied: ['e1'], held: new Set(['e3']) });
  });
});
