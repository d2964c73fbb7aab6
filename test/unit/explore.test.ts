import { describe, expect, test } from 'vitest';
import type { Breakage } from '../explore/breakages.ts';
import { breakages } from '../explore/breakages.ts';
import { families, worldOf } from '../explore/families.ts';
import { modelOf } from '../explore/model.ts';
import { explore } from '../explore/search.ts';
import type { Model } from '../explore/search.ts';

const limits = { maxStates: 100_000 };

describe('exploring a switchover', () => {
  test('finds nothing in a small world as it is built, and sees all of it', () => {
    const { states, exhausted, violation } = explore(modelOf(worldOf['no-key-number']), limits);
    expect(violation).toBeUndefined();
    expect(exhausted).toBe(true);
    expect(states).toBeGreaterThan(1_000);
  });

  test.each<[Breakage, RegExp]>([
    ['foreign-4xx-counts', /^Lost: .* a1 /],
    ['no-key-number', /^Out of order: a1 .* a2/],
    ['no-route-is-event', /^Doubled: a1 /],
    ['no-sweeper', /^Stuck: /],
  ])('finds %s', (breakage, what) => {
    const { violation } = explore(modelOf(worldOf[breakage], breakage), limits);
    expect(violation?.what).toMatch(what);
    expect(violation?.trace.length).toBeGreaterThan(1);
  });

  test('covers two keys with three events each and two stage changes', () => {
    const { keys, events, flips, zombies } = families.find(({ name }) => name === 'two-keys')!.bounds;
    expect([keys, events, flips, zombies]).toEqual([2, 3, 2, 1]);
    expect(Object.keys(breakages).toSorted()).toEqual(Object.keys(worldOf).toSorted());
  });
});

/** Counts up to 3, and from 1 also to a place where nothing goes on, or to 9, which is bad. */
function counter({ hasTrap, isBad }: { hasTrap: boolean; isBad: boolean }): Model {
  const state = (value: number): Uint8Array => Uint8Array.of(value, 0, 0, 0);
  return {
    size: 4,
    initial: state(0),
    next([value], emit) {
      if (value! < 3) emit(state(value! + 1), 'progress', () => `to ${value! + 1}`);
      if (value === 1 && hasTrap) emit(state(7), 'chance', () => 'into the trap');
      if (value === 2 && isBad) emit(state(9), 'chance', () => 'to 9');
    },
    judge: ([value]) => (value === 9 ? 'it is 9' : undefined),
    isFinished: ([value]) => value === 3,
    show: ([value]) => String(value),
  };
}

describe('the search', () => {
  test('sees every state', () => {
    const explored = explore(counter({ hasTrap: false, isBad: false }), limits);
    expect(explored).toMatchObject({ states: 4, steps: 3, depth: 3, exhausted: true, violation: undefined });
  });

  test('tells the shortest way to what must not be', () => {
    const { violation } = explore(counter({ hasTrap: true, isBad: true }), limits);
    expect(violation).toEqual({ what: 'it is 9', trace: ['to 1', 'to 2', 'to 9'], state: '9' });
  });

  test('finds where the end can no longer be reached', () => {
    const { violation } = explore(counter({ hasTrap: true, isBad: false }), limits);
    expect(violation).toMatchObject({ trace: ['to 1', 'into the trap'], state: '7' });
  });

  test('says when it did not see all', () => {
    expect(explore(counter({ hasTrap: false, isBad: false }), { maxStates: 2 }).exhausted).toBe(false);
  });
});
