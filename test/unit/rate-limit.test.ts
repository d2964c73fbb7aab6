import fc from 'fast-check';
import { expect, test } from 'vitest';
import { fullBucket, pauseBucket, rateLimiter, takeToken } from '../../src/switchover/bridge/rate-limit.ts';

const rate = fc.record({
  perSecond: fc.double({ min: 0.1, max: 1_000, noNaN: true }),
  burst: fc.integer({ min: 1, max: 50 }),
});

test('in no span of time more than the burst and what the rate allows', () => {
  fc.assert(
    fc.property(rate, fc.array(fc.integer({ min: 0, max: 2_000 }), { minLength: 1, maxLength: 60 }), (limits, gaps) => {
      let bucket = fullBucket(limits, 0);
      let now = 0;
      const starts = gaps.map((gap) => {
        now += gap;
        const taken = takeToken(bucket, limits, now);
        bucket = taken.bucket;
        return now + taken.waitMs;
      });
      for (const [first, from] of starts.entries()) {
        for (const [index, to] of starts.slice(first).entries()) {
          // In the order in which they came, and never more than allowed; a millisecond for rounding up.
          expect(to).toBeGreaterThanOrEqual(from);
          expect(index + 1).toBeLessThanOrEqual(limits.burst + ((to - from + 1) * limits.perSecond) / 1_000 + 1e-6);
        }
      }
    }),
  );
});

test('a pause holds everybody up, and what gathered meanwhile is no burst', () => {
  const limits = { perSecond: 10, burst: 5 };
  const paused = pauseBucket(fullBucket(limits, 0), 1_000);
  const first = takeToken(paused, limits, 0);
  expect(first.waitMs).toBe(1_000);
  expect(takeToken(first.bucket, limits, 0).waitMs).toBe(1_100);
  // Later, from the end of the pause on at its rate.
  expect(takeToken(first.bucket, limits, 1_000).waitMs).toBe(100);
  expect(takeToken(first.bucket, limits, 1_300).waitMs).toBe(0);
});

test('a pause holds up who waits already, and lets them go one after the other', async () => {
  const limiter = rateLimiter({ perSecond: 50, burst: 1 });
  const { signal } = new AbortController();
  const began = performance.now();
  const turns = Array.from({ length: 4 }, async () => {
    await limiter.turn(signal);
    return performance.now() - began;
  });
  limiter.pause(100);
  const [first, ...later] = (await Promise.all(turns)).sort((one, other) => one - other);
  // The first had its turn before the pause.
  expect(first).toBeLessThan(100);
  for (const [index, at] of later.entries()) expect(at).toBeGreaterThanOrEqual(100 + index * 20 - 2);
});

test('without a rate nobody waits, but for a pause', async () => {
  let now = 0;
  const limiter = rateLimiter(undefined, () => now);
  const { signal } = new AbortController();
  for (let each = 0; each < 1_000; each++) expect(await limiter.turn(signal)).toBe(true);
  limiter.pause(20);
  const waiting = limiter.turn(AbortSignal.abort());
  expect(await waiting).toBe(false);
  now = 20;
  expect(await limiter.turn(signal)).toBe(true);
});
