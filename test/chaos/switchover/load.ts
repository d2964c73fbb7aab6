// Customers: a steady rate of orders over HTTP, to the shop's instances in turn.
import { setTimeout as delay } from 'node:timers/promises';

export interface Load {
  readonly counts: { readonly placed: number; readonly refused: number; readonly failed: number };
  stop(): Promise<void>;
}

export function startLoad(urls: readonly string[], perSecond: number, customers: number, random: () => number): Load {
  const counts = { placed: 0, refused: 0, failed: 0 };
  const open = new Set<Promise<void>>();
  let running = true;
  let n = 0;

  async function place(): Promise<void> {
    const url = urls[n++ % urls.length]!;
    const body = {
      customer: `customer-${Math.floor(random() * customers)}`,
      waits: random() < 0.3,
      fails: random() < 0.03,
    };
    try {
      const answer = await fetch(`${url}/orders`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(20_000),
      });
      await answer.text();
      if (answer.status === 201) counts.placed++;
      else if (answer.status === 409) counts.refused++;
      else counts.failed++;
    } catch {
      // That instance is down, or was killed with the order in hand: the shop's own table says whether it was placed.
      counts.failed++;
    }
  }

  const loop = (async () => {
    const began = performance.now();
    for (let due = 0; running; due++) {
      const wait = began + (due * 1_000) / perSecond - performance.now();
      if (wait > 0) await delay(wait);
      // What can't be placed while everything stands still is not made up for.
      if (open.size > perSecond * 3) continue;
      const one = place().finally(() => open.delete(one));
      open.add(one);
    }
  })();

  return {
    counts,
    async stop() {
      running = false;
      await loop;
      await Promise.all(open);
    },
  };
}
