// What is explored: several worlds, each within its own bounds, each to the end. One world with everything would not come to one.
import type { Breakage } from './breakages.ts';
import type { Bounds } from './world.ts';

export interface Family {
  readonly name: string;
  /** What it is there for. */
  readonly about: string;
  readonly bounds: Bounds;
}

const ordered = {
  order: 'key',
  keys: 1,
  events: 3,
  partitions: 1,
  stages: ['rpc', 'event'],
  flips: 2,
  calls: 1,
  zombies: 1,
  repeats: 0,
  rewinds: 0,
  sweepsHeld: true,
} as const satisfies Bounds;

const several = { ...ordered, keys: 2, coarse: true } as const satisfies Bounds;

/** The largest first, so that both cores have work to the end. */
export const families: readonly Family[] = [
  {
    name: 'two-keys',
    about: 'two keys of three events in one partition, two stage changes, calls that are lost, copied, late',
    bounds: several,
  },
  {
    name: 'two-partitions',
    about: 'each key in a partition of its own, ramp between them, the relay repeats, the position is set back',
    bounds: { ...several, events: 2, partitions: 2, stages: ['rpc', 'ramp', 'event'], repeats: 1, rewinds: 1 },
  },
  {
    name: 'two-keys-rewound',
    about: 'the same, without copies of calls, the position set back once to any place',
    bounds: { ...several, zombies: 0, rewinds: 1 },
  },
  {
    name: 'unordered',
    about: 'order `none`: two keys, no numbers; outcomes leave the inbox after the effect; the backlog is called for',
    bounds: { ...several, order: 'none', events: 2, ageing: [0, 2], rewinds: 1, redrive: true, refused: [3] },
  },
  {
    name: 'start',
    about: 'the consumer has yet to start; old code publishes without declaring the switchover, and calls by itself',
    bounds: { ...ordered, flips: 2, notStarted: true, undeclared: [0, 1], repeats: 1 },
  },
  {
    name: 'done',
    about: 'up to `done` with the endpoint taken away, and transactions whose snapshot is older',
    bounds: { ...ordered, stages: ['rpc', 'event', 'done'], flips: 3, oldSnapshots: true, removesEndpoint: true },
  },
  {
    name: 'slow-answers',
    about:
      'answers that are on their way while the stage changes, shadow on the way, an event that the old handler refuses',
    bounds: { ...ordered, stages: ['rpc', 'shadow', 'event'], slowAnswers: true, refused: [1] },
  },
  {
    name: 'retention',
    about: 'outcomes leave the inbox while copies are under way',
    bounds: { ...ordered, coarse: true, rewinds: 1, ageing: [0, 1, 2], refused: [0] },
  },
  {
    name: 'steps',
    about:
      'one key, each step by itself: open transactions across a stage change, the relay behind, crashes in between',
    bounds: { ...ordered, repeats: 1 },
  },
  {
    name: 'no-sweep',
    about: 'nobody sweeps for held events and nobody crashes: whoever applies a number finds what waited for it',
    bounds: { ...ordered, sweepsHeld: false },
  },
  {
    name: 'parked',
    about: 'event handlers that fail, are parked, tried again or skipped, while calls bring the same events',
    bounds: { ...ordered, coarse: true, rewinds: 1, failing: [0, 1], redrive: true },
  },
  {
    name: 'late-calls',
    about: 'two calls under way that nobody waits for, four stage changes',
    bounds: { ...ordered, zombies: 2, flips: 4, coarse: true },
  },
];

/** The smallest world in which each breakage shows. */
export const worldOf: Readonly<Record<Breakage, Bounds>> = {
  'no-shared-inbox': { ...ordered, events: 2 },
  'no-key-number': { ...ordered, events: 2 },
  'drops-old-epochs': { ...ordered, events: 2 },
  'no-sweeper': { ...ordered, events: 1 },
  'route-not-stamped': { ...ordered, events: 2 },
  'early-in-memory': { ...ordered, events: 2 },
  'no-lock-on-hold': { ...ordered, events: 2, sweepsHeld: false },
  'rejected-keeps-number': { ...ordered, events: 2, refused: [0] },
  'foreign-4xx-counts': { ...ordered, events: 1 },
  'no-stamps-after-done': { ...ordered, events: 2, stages: ['rpc', 'event', 'done'] },
  'no-route-is-event': { ...ordered, events: 2, undeclared: [0] },
  'promotes-before-since': { ...ordered, events: 2, notStarted: true },
  'gates-expire': { ...ordered, events: 2, ageing: [0, 1], rewinds: 1 },
  'done-by-xmin': {
    ...ordered,
    events: 2,
    stages: ['rpc', 'event', 'done'],
    oldSnapshots: true,
    removesEndpoint: true,
  },
  'offset-before-database': { ...ordered, events: 2 },
};
