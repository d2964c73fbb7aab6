import type { Sequence } from '../event/index.ts';

/**
 * How many events each partition has been given so far: `{"<source>/<generation>": {"<topic>": [count of partition 0, …]}}`.
 * This is what a tick's `numbers` holds: the counts before its first event.
 */
export type Numbers = Readonly<Record<string, Readonly<Record<string, readonly number[]>>>>;

/** Hands out sequences. It counts in a copy: the numbers it was made from stay as they are, since a replay starts from them again. */
export interface Counter {
  /** The next sequence of a partition; the first is 1. */
  next(source: string, topic: string, partition: number): Sequence;
  /** The counts after all that was handed out so far. */
  numbers(): Numbers;
}

/**
 * Counts on from `before`. The generation of a source is the one in `before`, so that a replay repeats it;
 * `generations` is asked for sources that are not in it.
 *
 * @example
 * const counter = createCounter({ 'orders/1': { orders: [4, 0] } }, () => 1);
 * counter.next('orders', 'orders', 0); // { generation: 1, number: 5n }
 */
export function createCounter(before: Numbers, generations: (source: string) => number): Counter {
  const counts = new Map<string, Map<string, number[]>>();
  const current = new Map<string, { generation: number; topics: Map<string, number[]> }>();
  for (const [name, topics] of Object.entries(before)) {
    const copied = new Map(Object.entries(topics).map(([topic, numbers]) => [topic, [...numbers]]));
    counts.set(name, copied);
    const { source, generation } = parseName(name);
    if ((current.get(source)?.generation ?? 0) < generation) current.set(source, { generation, topics: copied });
  }

  function open(source: string): { generation: number; topics: Map<string, number[]> } {
    const opened = { generation: generations(source), topics: new Map<string, number[]>() };
    counts.set(`${source}/${opened.generation}`, opened.topics);
    current.set(source, opened);
    return opened;
  }

  return {
    next(source, topic, partition) {
      const { generation, topics } = current.get(source) ?? open(source);
      let partitions = topics.get(topic);
      if (partitions === undefined) topics.set(topic, (partitions = []));
      // A dense array: one with holes would be written as JSON nulls.
      while (partitions.length <= partition) partitions.push(0);
      const number = partitions[partition]! + 1;
      partitions[partition] = number;
      return { generation, number: BigInt(number) };
    },
    numbers() {
      return Object.fromEntries(
        [...counts].map(([name, topics]) => [
          name,
          Object.fromEntries([...topics].map(([topic, n]) => [topic, [...n]])),
        ]),
      );
    },
  };
}

/**
 * The numbers with which the next tick starts: a source whose generation has gone up starts again at 0, and its old counts are dropped.
 * Only between ticks: a tick in hand is numbered in the generation in which it began.
 */
export function inGenerations(numbers: Numbers, generations: ReadonlyMap<string, number>): Numbers {
  return Object.fromEntries(
    Object.entries(numbers).filter(([name]) => {
      const { source, generation } = parseName(name);
      return generation >= (generations.get(source) ?? generation);
    }),
  );
}

/** The count of one partition, 0 if nothing was counted there in this generation. */
export function countOf(
  numbers: Numbers,
  source: string,
  generation: number,
  topic: string,
  partition: number,
): bigint {
  return BigInt(numbers[`${source}/${generation}`]?.[topic]?.[partition] ?? 0);
}

// Source names hold no slash.
function parseName(name: string): { source: string; generation: number } {
  const slash = name.lastIndexOf('/');
  return { source: name.slice(0, slash), generation: Number(name.slice(slash + 1)) };
}
