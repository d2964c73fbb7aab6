import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { enableFailpoint, failpoint, retryDelayMs, service, sleep, together } from '../../src/lifecycle/index.ts';
import type { Service } from '../../src/lifecycle/index.ts';
import { hammer } from '../support/service-stress.ts';

function probe(): Service & { running: number; most: number } {
  const counts = { running: 0, most: 0 };
  const inner = service('probe', async (signal, ready) => {
    counts.running++;
    counts.most = Math.max(counts.most, counts.running);
    await Promise.resolve();
    ready();
    await new Promise<void>((resolve) => {
      if (signal.aborted) resolve();
      else signal.addEventListener('abort', () => resolve(), { once: true });
    });
    await Promise.resolve();
    counts.running--;
  });
  return Object.assign(counts, inner);
}

describe('service', () => {
  it('survives starts and stops in any order, and never runs twice', async () => {
    const probed = probe();
    await hammer(probed, { rounds: 200 });
    expect(probed.running).toBe(0);
    expect(probed.most).toBe(1);
  });

  it('rejects start with what its body threw, and can be started again', async () => {
    let broken = true;
    const fragile = service('fragile', async (signal, ready) => {
      if (broken) throw new Error('no database');
      ready();
      await sleep(60_000, signal);
    });
    await expect(fragile.start()).rejects.toThrow('no database');
    broken = false;
    await fragile.start();
    await fragile.stop();
  });

  it('tells of a body that ends by itself with an error', async () => {
    let fail: (error: Error) => void = () => undefined;
    const doomed = service('doomed', (_signal, ready) => {
      ready();
      return new Promise<void>((_resolve, reject) => {
        fail = reject;
      });
    });
    await doomed.start();
    const failed = doomed.failed();
    fail(new Error('lost'));
    await expect(failed).resolves.toMatchObject({ message: 'lost' });
    await expect(doomed.failed()).resolves.toMatchObject({ message: 'lost' });
    await doomed.stop();
  });

  it('starts anew when asked while it is stopping', async () => {
    const probed = probe();
    await probed.start();
    const stopped = probed.stop();
    await probed.start();
    await stopped;
    expect(probed.running).toBe(1);
    await probed.stop();
  });

  it('does not wait for a start that was overtaken by a stop', async () => {
    const slow = service('slow', async (signal) => {
      await sleep(60_000, signal);
    });
    const started = slow.start();
    await slow.stop();
    await started;
  });
});

describe('together', () => {
  it('stops one that is still starting', async () => {
    const waiting = service('waiting', async (signal) => void (await sleep(60_000, signal)));
    const both = together('both', [waiting, probe()]);
    const started = both.start();
    await Promise.resolve();
    await both.stop();
    await started;
  });

  it('stops what it started when one of them can not start', async () => {
    const first = probe();
    const broken = service('broken', () => Promise.reject(new Error('no broker')));
    const both = together('both', [first, broken]);
    await expect(both.start()).rejects.toThrow('no broker');
    await both.stop();
    expect(first.running).toBe(0);
  });

  it('fails when one of them fails, and stops the rest', async () => {
    const first = probe();
    let fail: (error: Error) => void = () => undefined;
    const doomed = service('doomed', (_signal, ready) => {
      ready();
      return new Promise<void>((_resolve, reject) => {
        fail = reject;
      });
    });
    const both = together('both', [first, doomed]);
    await both.start();
    const failed = both.failed();
    fail(new Error('lost'));
    await expect(failed).resolves.toMatchObject({ message: 'lost' });
    expect(first.running).toBe(0);
  });

  it('survives starts and stops in any order', async () => {
    const [first, second] = [probe(), probe()];
    await hammer(together('both', [first, second]), { rounds: 100 });
    expect([first.running, second.running]).toEqual([0, 0]);
    expect([first.most, second.most]).toEqual([1, 1]);
  });
});

describe('retryDelayMs', () => {
  const policy = { attempts: 5, firstDelayMs: 200, maxDelayMs: 10_000 };

  it('doubles, stays between half and all of it, and never passes the maximum', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 10_000 }),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        (attempt, random) => {
          const full = Math.min(10_000, 200 * 2 ** Math.min(attempt - 1, 30));
          const delay = retryDelayMs(policy, attempt, random);
          expect(delay).toBeGreaterThanOrEqual(Math.floor(full / 2));
          expect(delay).toBeLessThanOrEqual(full);
        },
      ),
    );
  });
});

describe('failpoints', () => {
  it('are off unless switched on, and refuse names that do not exist', () => {
    expect(failpoint('relay.unchained-sends')).toBe(false);
    const off = enableFailpoint('relay.unchained-sends');
    expect(failpoint('relay.unchained-sends')).toBe(true);
    off();
    expect(failpoint('relay.unchained-sends')).toBe(false);
    expect(() => enableFailpoint('relay.nonsense')).toThrowError(
      expect.objectContaining({ code: 'TURNOUT_FAILPOINT_UNKNOWN' }),
    );
  });
});
