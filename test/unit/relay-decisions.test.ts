import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { findings } from '../../src/relay/checks.ts';
import { observe } from '../../src/relay/leadership.ts';
import type { Observation, Watch } from '../../src/relay/leadership.ts';
import { defaultPace, waitAfterEmptyPollMs } from '../../src/relay/pace.ts';
import { planTopics } from '../../src/relay/topics.ts';

describe('a standby', () => {
  const seen = (atMs: number, more: Partial<Observation> = {}): Observation => ({
    atMs,
    tick: 5n,
    holder: '100',
    work: true,
    statement: 'one',
    running: false,
    ...more,
  });
  const after = (...observations: Observation[]): boolean => {
    let watch: Watch | undefined;
    let takeOver = false;
    for (const each of observations) ({ watch, takeOver } = observe(watch, each, 1_000));
    return takeOver;
  };

  test('takes over from a leader that has work and gives no sign of life for takeoverMs', () => {
    expect(after(seen(0), seen(500), seen(999))).toBe(false);
    expect(after(seen(0), seen(500), seen(1_000))).toBe(true);
  });

  test('waits as long as ticks come, there is nothing to do, or somebody else leads now', () => {
    expect(after(seen(0), seen(900, { tick: 6n }), seen(1_800, { tick: 7n }))).toBe(false);
    expect(after(seen(0, { work: false }), seen(5_000, { work: false }))).toBe(false);
    expect(after(seen(0), seen(900, { work: false }), seen(1_800))).toBe(false);
    expect(after(seen(0), seen(1_500, { holder: '200' }))).toBe(false);
    expect(after(seen(0), seen(900, { statement: 'two' }), seen(1_800, { statement: 'three' }))).toBe(false);
    expect(after(seen(0), seen(900, { running: true }), seen(1_800))).toBe(false);
    expect(after(seen(0, { holder: undefined }), seen(5_000, { holder: undefined }))).toBe(false);
  });

  test('never takes over within takeoverMs of a sign of life', () => {
    const step = fc.record({
      ms: fc.nat({ max: 600 }),
      tick: fc.boolean(),
      work: fc.boolean(),
      holder: fc.constantFrom('1', '2'),
      statement: fc.boolean(),
      running: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        let watch: Watch | undefined;
        let [atMs, tick, statements, lastLife, lastHolder] = [0, 0n, 0, 0, ''];
        for (const each of steps) {
          atMs += each.ms;
          if (each.tick) tick++;
          if (each.statement) statements++;
          if (each.tick || each.statement || each.running || !each.work || each.holder !== lastHolder) lastLife = atMs;
          lastHolder = each.holder;
          const decision = observe(watch, { ...each, atMs, tick, statement: String(statements) }, 1_000);
          watch = decision.watch;
          expect(decision.takeOver).toBe(atMs - lastLife >= 1_000);
        }
      }),
    );
  });
});

test('the relay polls quickly after work, and calms down', () => {
  expect(waitAfterEmptyPollMs(defaultPace, 0)).toBe(3);
  expect(waitAfterEmptyPollMs(defaultPace, 499)).toBe(3);
  expect(waitAfterEmptyPollMs(defaultPace, 500)).toBe(25);
});

describe('topics to apply', () => {
  test('are created where they are missing', () => {
    const wanted = [
      { name: 'a', partitions: 3 },
      { name: 'b', partitions: 6 },
    ];
    expect(planTopics(wanted, [{ name: 'b', partitions: 6 }])).toEqual([
      { topic: 'a', partitions: 3, change: 'created' },
      { topic: 'b', partitions: 6, change: 'unchanged' },
    ]);
  });

  test('are refused with another partition count', () => {
    expect(() => planTopics([{ name: 'a', partitions: 3 }], [{ name: 'a', partitions: 4 }])).toThrow(
      expect.objectContaining({ code: 'TURNOUT_PARTITIONS_MISMATCH', details: { topic: 'a', recorded: 3, actual: 4 } }),
    );
  });
});

describe('the last record of a partition', () => {
  const catalogue = { partitions: new Map([['t', 1]]), generations: new Map([['orders', 2]]) };
  const record = (source: string, generation: number, number: number) => ({
    topic: 't',
    partition: 0,
    message: {
      key: 'k',
      value: Buffer.from('{}'),
      headers: {
        ce_id: 'id',
        ce_type: 'x',
        ce_source: source,
        ce_time: '2026-11-23T00:00:00.000Z',
        ce_sequence: `${String(generation).padStart(6, '0')}-${String(number).padStart(20, '0')}`,
        'turnout-seq': '9',
      },
    },
  });
  const noted = (): void => undefined;
  const tick = { tick: 3n, lo: '', hi: '', afterSeq: 0n, numbers: { 'orders/2': { t: [4] } }, relay: '' };
  const time = Date.parse('2026-11-23T00:00:00.000Z');

  test('is above what was counted, or known by its count', () => {
    expect(findings([record('orders', 2, 5)], catalogue, tick, time, noted)).toEqual([
      { topic: 't', partition: 0, id: 'id', seq: 9n, aboveCounts: true, kept: true },
    ]);
    expect(findings([record('orders', 2, 4)], catalogue, tick, time + 1, noted)).toMatchObject([
      { aboveCounts: false, kept: false },
    ]);
    expect(findings([record('orders', 2, 1)], catalogue, undefined, time, noted)).toMatchObject([
      { aboveCounts: true },
    ]);
  });

  test('counts by its headers, though its value is gone; one that can’t be read is passed over and told', () => {
    const known = record('orders', 2, 5);
    const tombstone = { ...known, message: { ...known.message, value: null } };
    expect(findings([tombstone], catalogue, tick, time, noted)).toMatchObject([{ aboveCounts: true }]);
    const { ce_id: _, ...headers } = known.message.headers;
    const told: unknown[] = [];
    const broken = { ...known, message: { ...known.message, headers } };
    expect(findings([broken], catalogue, tick, time, ({ topic, partition }) => told.push([topic, partition]))).toEqual(
      [],
    );
    expect(told).toEqual([['t', 0]]);
  });

  test('says nothing of an older generation, or of another source', () => {
    expect(findings([record('orders', 1, 99), record('billing', 2, 99)], catalogue, tick, time, noted)).toEqual([]);
  });
});
