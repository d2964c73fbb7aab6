import type { Failpoint } from '../../src/lifecycle/index.ts';
import { everything } from './writers.ts';
import type { Mix } from './writers.ts';

/** A schedule of transactions and of what happens to the relays meanwhile. */
export interface Scenario {
  readonly events: number;
  readonly connections: number;
  readonly keys: number;
  readonly partitions: number;
  readonly mix: Mix;
  readonly relayProcesses: number;
  readonly takeoverMs: number;
  readonly pageSize: number;
  /** Whether relays are killed and paused at random. */
  readonly chaos: boolean;
  readonly failingSends: number;
  readonly dieAfterSends?: number;
  readonly blind?: boolean;
  /** The relay starts when all is written: one long tick. */
  readonly backlogFirst?: boolean;
  readonly sequenceCache?: number;
  readonly failpoints: readonly Failpoint[];
  readonly drainMs: number;
}

/** What the shipped code has to stand. */
export function scenario(events: number): Scenario {
  return {
    events,
    connections: 12,
    keys: 200,
    partitions: 6,
    mix: everything,
    relayProcesses: 2,
    takeoverMs: 1_500,
    // Small, so that ticks have many pages.
    pageSize: 12,
    chaos: true,
    failingSends: 0.02,
    failpoints: [],
    drainMs: 60_000,
  };
}

const quiet: Scenario = { ...scenario(1_500), relayProcesses: 1, chaos: false, failingSends: 0, drainMs: 30_000 };

/** Each breaks one guarantee in the shipped code, and makes the schedule in which that shows. */
export const sabotages: Readonly<Record<string, Scenario>> = {
  // Transactions that commit late are passed over.
  'relay.read-above-last-id': { ...quiet, failpoints: ['relay.read-above-last-id'] },
  // Killed between publishing and persisting, it reads a longer stretch next time; what committed late meanwhile comes before what
  // was published, and moves all numbers behind it. One partition, and many late commits, so that it does so each time. Blind: the
  // comparison with the topic at its start would notice the same.
  'relay.persist-tick-after-publish': {
    ...quiet,
    failpoints: ['relay.persist-tick-after-publish'],
    events: 2_000,
    partitions: 1,
    connections: 16,
    keys: 1_000,
    mix: { commit: 40, 'early-xid': 30, long: 15, prepared: 15 },
    dieAfterSends: 3,
    blind: true,
  },
  // A page that fails in the middle of a long tick, and those behind it.
  'relay.unchained-sends': {
    ...quiet,
    failpoints: ['relay.unchained-sends'],
    backlogFirst: true,
    pageSize: 10,
    failingSends: 0.1,
  },
  // Sessions draw blocks of numbers: a later publisher of a key has a lower one.
  'sequence-cache-20': { ...quiet, failpoints: ['relay.accept-sequence-cache'], sequenceCache: 20, keys: 20 },
};
