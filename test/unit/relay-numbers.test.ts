import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { countOf, createCounter, inGenerations } from '../../src/relay/numbers.ts';
import type { Numbers } from '../../src/relay/numbers.ts';

const place = fc.record({
  source: fc.constantFrom('orders', 'billing'),
  topic: fc.constantFrom('a', 'b'),
  partition: fc.integer({ min: 0, max: 4 }),
});
const one = (): number => 1;

describe('sequence numbers', () => {
  test('are dense for each partition, and each replay gives the same', () => {
    fc.assert(
      fc.property(fc.array(place, { maxLength: 60 }), fc.array(place, { maxLength: 60 }), (before, tick) => {
        const first = createCounter({}, one);
        for (const { source, topic, partition } of before) first.next(source, topic, partition);
        const start = first.numbers();
        const frozen = JSON.stringify(start);
        const number = (): bigint[] => {
          const counter = createCounter(start, one);
          return tick.map(({ source, topic, partition }) => counter.next(source, topic, partition).number);
        };
        const numbers = number();
        expect(number()).toEqual(numbers);
        expect(JSON.stringify(start)).toBe(frozen);
        tick.forEach(({ source, topic, partition }, index) => {
          const earlier = [...before, ...tick.slice(0, index)].filter(
            (p) => p.source === source && p.topic === topic && p.partition === partition,
          );
          expect(numbers[index]).toBe(BigInt(earlier.length + 1));
        });
      }),
    );
  });

  test('go on from any checkpoint as if there had been none', () => {
    fc.assert(
      fc.property(fc.array(place, { minLength: 1, maxLength: 60 }), fc.nat(), (tick, at) => {
        const cut = at % tick.length;
        const whole = createCounter({}, one);
        const expected = tick.map(({ source, topic, partition }) => whole.next(source, topic, partition).number);
        const head = createCounter({}, one);
        for (const { source, topic, partition } of tick.slice(0, cut)) head.next(source, topic, partition);
        const tail = createCounter(JSON.parse(JSON.stringify(head.numbers())) as Numbers, one);
        expect(
          tick.slice(cut).map(({ source, topic, partition }) => tail.next(source, topic, partition).number),
        ).toEqual(expected.slice(cut));
        expect(tail.numbers()).toEqual(whole.numbers());
      }),
    );
  });

  test('keep the generation of the tick in a replay, and start again at 1 in a new one', () => {
    const replay = createCounter({ 'orders/1': { a: [7] } }, () => 2);
    expect(replay.next('orders', 'a', 0)).toEqual({ generation: 1, number: 8n });
    const next = createCounter(inGenerations(replay.numbers(), new Map([['orders', 2]])), () => 2);
    expect(next.next('orders', 'a', 0)).toEqual({ generation: 2, number: 1n });
    expect(next.numbers()).toEqual({ 'orders/2': { a: [1] } });
  });

  test('are 0 where nothing was counted', () => {
    expect(countOf({}, 'orders', 1, 'a', 3)).toBe(0n);
    expect(countOf({ 'orders/1': { a: [5] } }, 'orders', 1, 'a', 0)).toBe(5n);
    expect(countOf({ 'orders/1': { a: [5] } }, 'orders', 2, 'a', 0)).toBe(0n);
  });
});
