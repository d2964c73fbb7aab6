import { setTimeout as delay } from 'node:timers/promises';

export interface LoadCounts {
  readonly placed: number;
  readonly changed: number;
  readonly cancelled: number;
  /** Requests that the shop did not answer as it should; none are expected, whatever happens to the other services. */
  readonly failed: number;
}

/** Customers who place orders, change some of them and cancel some, at a steady rate. */
export interface Load {
  readonly counts: LoadCounts;
  /** The first request that failed, if any. */
  readonly firstFailure: string | undefined;
  /** Stops placing; resolves when all that was begun is answered. */
  stop(): Promise<void>;
}

const customers = 300;
/** As many as wait for an answer at once: on a busy machine the rate sinks, instead of everything timing out. */
const maxOpen = 32;
/** A few customers order all the time: theirs are the keys on which things happen at once. */
const busyCustomers = 12;
const items = ['lamp', 'chair', 'kettle', 'carpet', 'clock', 'radio'];

/** Once the orders asked for are placed, this share of the rate goes on until the story is told. */
const restingShare = 0.3;

/** Starts placing `perSecond` orders a second. Every third is changed soon after, every fifth cancelled. */
export function startLoad(shopUrl: string, perSecond: number, wanted: number): Load {
  const counts = { placed: 0, changed: 0, cancelled: 0, failed: 0 };
  let firstFailure: string | undefined;
  let running = true;
  let waiting = 0;
  const open = new Set<Promise<void>>();

  async function send(
    method: string,
    path: string,
    body: unknown,
    expected: readonly number[],
  ): Promise<Response | undefined> {
    waiting++;
    try {
      const response = await fetch(`${shopUrl}${path}`, {
        method,
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(30_000),
      });
      if (expected.includes(response.status)) return response;
      throw new Error(`${method} ${path} was answered ${response.status}: ${await response.text()}`);
    } catch (error) {
      counts.failed++;
      firstFailure ??=
        error instanceof Error
          ? `${error.message} ${error.cause instanceof Error ? error.cause.message : ''}`
          : String(error);
      return undefined;
    } finally {
      waiting--;
    }
  }

  async function oneOrder(number: number): Promise<void> {
    const busy = number % 4 === 0;
    const customer = busy
      ? `busy-${Math.floor(Math.random() * busyCustomers)}`
      : `customer-${Math.floor(Math.random() * customers)}`;
    const item = items[number % items.length] ?? 'lamp';
    const placed = await send(
      'POST',
      '/orders',
      { customerId: customer, email: `${customer}@example.org`, item, quantity: 1 + (number % 5) },
      [201],
    );
    if (placed === undefined) return;
    counts.placed++;
    const { orderId } = (await placed.json()) as { orderId: string };
    if (number % 3 === 0) {
      await delay(Math.random() * 800);
      const changed = await send('PATCH', `/orders/${orderId}`, { quantity: 1 + Math.floor(Math.random() * 9) }, [204]);
      if (changed !== undefined) counts.changed++;
    }
    if (number % 5 === 0) {
      await delay(Math.random() * 800);
      const cancelled = await send('POST', `/orders/${orderId}/cancel`, {}, [204]);
      if (cancelled !== undefined) counts.cancelled++;
    }
  }

  let number = 0;
  let due = 0;
  let lookedAt = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    const rate = counts.placed < wanted ? perSecond : perSecond * restingShare;
    // By the clock, so that a slow moment is made up for and the rate stays what it is said to be; but only a short one.
    due = Math.min(due + ((now - lookedAt) / 1000) * rate, number + rate);
    lookedAt = now;
    while (running && number < due && waiting < maxOpen) {
      const one = oneOrder(++number).finally(() => open.delete(one));
      open.add(one);
    }
  }, 10);

  return {
    counts,
    get firstFailure() {
      return firstFailure;
    },
    async stop() {
      running = false;
      clearInterval(timer);
      await Promise.all(open);
    },
  };
}
