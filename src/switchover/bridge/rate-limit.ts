// A token bucket: the decision is plain data in, plain data out; the limiter around it has the clock.
import { sleep } from '../../lifecycle/index.ts';

/** How often something may be done: `burst` times at once, and `perSecond` times a second from then on. */
export interface Rate {
  readonly perSecond: number;
  readonly burst: number;
}

/** A bucket as it was left. Times are milliseconds of one clock. */
export interface Bucket {
  /** Below zero: so many have been given out ahead. */
  readonly tokens: number;
  readonly at: number;
  /** Nothing is given out before. */
  readonly notBefore: number;
}

export function fullBucket({ burst }: Rate, now: number): Bucket {
  return { tokens: burst, at: now, notBefore: now };
}

/** Takes one token, ahead of time if need be: who takes it waits for `waitMs`, in the order in which they came. */
export function takeToken(bucket: Bucket, { perSecond, burst }: Rate, now: number): { bucket: Bucket; waitMs: number } {
  // Paused, it fills from the end of the pause on.
  const at = Math.max(now, bucket.at);
  const tokens = Math.min(burst, bucket.tokens + ((at - bucket.at) * perSecond) / 1000) - 1;
  const forTokenMs = tokens >= 0 ? 0 : at - now + (-tokens * 1000) / perSecond;
  const waitMs = Math.max(forTokenMs, bucket.notBefore - now, 0);
  return { bucket: { ...bucket, tokens, at }, waitMs: Math.ceil(waitMs) };
}

/**
 * Gives out nothing before `until`, nor then a burst of what would have gathered meanwhile. Tokens that were taken ahead of time are
 * given back: who waits for one takes another.
 */
export function pauseBucket(bucket: Bucket, until: number): Bucket {
  if (until <= bucket.notBefore) return bucket;
  return { tokens: Math.min(Math.max(bucket.tokens, 0), 1), at: Math.max(bucket.at, until), notBefore: until };
}

export interface RateLimiter {
  /** Resolves when it is the caller's turn; with false if `signal` was aborted first. */
  turn(signal: AbortSignal): Promise<boolean>;
  /** Lets nobody through for `ms`. */
  pause(ms: number): void;
}

/** One limiter for all that share an endpoint in this process. Without a rate only pauses hold anybody up. */
export function rateLimiter(rate: Rate | undefined, now: () => number = () => performance.now()): RateLimiter {
  const limits = rate ?? { perSecond: Number.POSITIVE_INFINITY, burst: Number.POSITIVE_INFINITY };
  let bucket = fullBucket({ ...limits, burst: Math.min(limits.burst, Number.MAX_SAFE_INTEGER) }, now());
  return {
    async turn(signal) {
      for (;;) {
        const taken =
          rate === undefined
            ? { bucket, waitMs: Math.ceil(Math.max(0, bucket.notBefore - now())) }
            : takeToken(bucket, limits, now());
        bucket = taken.bucket;
        const { notBefore } = bucket;
        if (taken.waitMs > 0 && !(await sleep(taken.waitMs, signal))) return false;
        // A pause that began while this one waited holds it up too.
        if (bucket.notBefore === notBefore) return !signal.aborted;
      }
    },
    pause(ms) {
      bucket = pauseBucket(bucket, now() + ms);
    },
  };
}
