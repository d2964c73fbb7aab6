// What the world of the explorer holds, as bytes: the databases of producer and consumer, the log, the network, and the memories of
// processes. One switchover `s` of one consumer `c`, generation 1; a few keys with a few events each.
import type { Gate, Outcome } from '../../src/inbox/index.ts';
import { stages } from '../../src/switchover/index.ts';
import type { Stage } from '../../src/switchover/index.ts';
import type { State } from './search.ts';

/** What may happen in one exploration, and how often. */
export interface Bounds {
  readonly order: 'key' | 'none';
  /** 1 or 2. */
  readonly keys: number;
  /** Events of each key, up to 3. */
  readonly events: number;
  /** 1: both keys share it. 2: each has its own. */
  readonly partitions: number;
  readonly stages: readonly Stage[];
  readonly startIn?: Stage;
  /** Stage changes in all. */
  readonly flips: number;
  /** Calls at a time, over all keys, that somebody waits for. */
  readonly calls: number;
  /** Calls at a time that nobody waits for any more, or copies of calls, and that may still arrive. */
  readonly zombies: number;
  /**
   * Fewer steps, for larger worlds. An event is stamped, committed and in the log in one step: what is read late stands for what is
   * relayed late. A call is sent, received and answered in one step: one that arrives late is a copy, to be called for again. A row
   * may be called for by its publisher, and by the sweeper, at any time.
   */
  readonly coarse?: boolean;
  /** Whether an answer may be on its way while other things happen. */
  readonly slowAnswers?: boolean;
  /** How many messages the relay may send again. */
  readonly repeats: number;
  /** How often the consumer's position may be set back, to any place. */
  readonly rewinds: number;
  /** Events that the old handler refuses for good. */
  readonly refused?: readonly number[];
  /** Events at which the event handler may fail until it is given up. */
  readonly failing?: readonly number[];
  /** Events that may be published by code that does not declare the switchover, and calls by itself. */
  readonly undeclared?: readonly number[];
  /** Events whose outcome the inbox may forget, because they are old. */
  readonly ageing?: readonly number[];
  /** Whether a transaction may have looked at the stage long before it publishes. */
  readonly oldSnapshots?: boolean;
  /** Whether the consumer has yet to start, and its start to be recorded. */
  readonly notStarted?: boolean;
  /** Whether an operator may have the calls made for what was routed to events. */
  readonly redrive?: boolean;
  /** Whether the consumer's process looks for held events by itself. Without: whoever applies a number does, and nobody crashes in between. */
  readonly sweepsHeld: boolean;
  /** Whether, once `done`, the old endpoint may be taken away. */
  readonly removesEndpoint?: boolean;
}

/** Where each thing is in the bytes of a state. */
export interface Layout {
  readonly size: number;
  /** By event: its stamp, 0 if it is not committed. */
  readonly stamp: number;
  /** By event: its row of turnout.rpc_delivery; one of {@link rows}. */
  readonly row: number;
  /** By event: what the inbox knows of it. */
  readonly inbox: number;
  /** By event: how it is held. */
  readonly held: number;
  /** By event: what really happened; nobody in the world can read it. */
  readonly effect: number;
  /** By event: calls for it that nobody waits for. */
  readonly zombies: number;
  /** By key: the stamp of the transaction that is open and has published. */
  readonly open: number;
  /** By key: what a transaction saw of the stage that has not published yet. */
  readonly snapshot: number;
  /** By key: the call that is being made. */
  readonly call: number;
  /** By key: the answer that is on its way. */
  readonly answer: number;
  /** By key: the gate. */
  readonly gate: number;
  /** By key: whether somebody who applied a number has yet to look for what waited for it. */
  readonly draining: number;
  /** By key: how many of its events are in the log. */
  readonly relayed: number;
  /** By partition: offset of the next message. */
  readonly position: number;
  /** By partition: the sequence that was counted last, and first. */
  readonly counted: number;
  readonly base: number;
  /** By partition: where the consumer started. */
  readonly since: number;
  /** By partition: what is in the hands of the consumer's process, in worlds that are broken that way. */
  readonly inHand: number;
  readonly logLength: number;
  /** By partition and offset. */
  readonly log: number;
  readonly logMost: number;
  readonly stage: number;
  readonly epoch: number;
  readonly flips: number;
  readonly repeats: number;
  readonly rewinds: number;
  /** Bits: the start is recorded; the consumer has started; no call can be stamped; the endpoint is gone. */
  readonly flags: number;
  /** The highest epoch the consumer has seen, in worlds that are broken that way. */
  readonly highestEpoch: number;
}

export const flag = { sinceRecorded: 1, started: 2, closed: 4, endpointGone: 8 } as const;

/** A row of turnout.rpc_delivery: none; promised by a process that lives, or has died; due. */
export const rows = { none: 0, promised: 1, orphaned: 2, due: 3 } as const;

export const heldAs = { none: 0, early: 1, behind: 2, parked: 3 } as const;
/** Added to how it is held: in memory only. */
export const inMemory = 4;

export const effects = { none: 0, applied: 1, rejected: 2, skipped: 3 } as const;

export function layoutOf(bounds: Bounds): Layout {
  const { keys, events, partitions } = bounds;
  const all = keys * events;
  const logMost = (partitions === 1 ? all : events) + bounds.repeats;
  let next = 0;
  const take = (bytes: number): number => {
    next += bytes;
    return next - bytes;
  };
  const layout = {
    stamp: take(all),
    row: take(all),
    inbox: take(all),
    held: take(all),
    effect: take(all),
    zombies: take(all),
    open: take(keys),
    snapshot: take(keys),
    call: take(keys),
    answer: take(keys),
    gate: take(keys),
    draining: take(keys),
    relayed: take(keys),
    position: take(partitions),
    counted: take(partitions),
    base: take(partitions),
    since: take(partitions),
    inHand: take(partitions),
    logLength: take(partitions),
    log: take(partitions * logMost),
    stage: take(1),
    epoch: take(1),
    flips: take(1),
    repeats: take(1),
    rewinds: take(1),
    flags: take(1),
    highestEpoch: take(1),
  };
  return { ...layout, logMost, size: Math.ceil(next / 4) * 4 };
}

/** What code gave an event: no stamp since it does not declare the switchover; a route; or none although it does. */
export type Given = 'undeclared' | 'rpc' | 'event' | 'dropped';
const givens = ['undeclared', 'rpc', 'event', 'dropped'] as const;

/** A stamp as one byte: what was given, epoch (0 to 7), key number (0: none). */
export const packStamp = (given: Given, epoch: number, number: number): number =>
  (givens.indexOf(given) + 1) | (epoch << 3) | (number << 6);
export const givenOf = (stamp: number): Given => givens[(stamp & 7) - 1]!;
export const epochOf = (stamp: number): number => (stamp >> 3) & 7;
export const numberOf = (stamp: number): number => stamp >> 6;

/** What a transaction saw: stage, epoch, and how far its key was counted. Never 0. */
export const packSnapshot = (stage: number, epoch: number, number: number): number =>
  (stage + 1) | (epoch << 3) | (number << 6);
export const stageOfSnapshot = (snapshot: number): number => (snapshot & 7) - 1;

/** A call: for which event of the key it is (`target`), which one is being sent now, who makes it, whether its answer is on the way. */
export interface Call {
  readonly target: number;
  readonly current: number;
  readonly by: 'publisher' | 'sweeper';
  readonly answered: boolean;
}
export const packCall = ({ target, current, by, answered }: Call): number =>
  (target + 1) | ((current + 1) << 2) | (by === 'publisher' ? 16 : 0) | (answered ? 32 : 0);
export const unpackCall = (call: number): Call => ({
  target: (call & 3) - 1,
  current: ((call >> 2) & 3) - 1,
  by: (call & 16) === 0 ? 'sweeper' : 'publisher',
  answered: (call & 32) !== 0,
});

/** Two inboxes and two gates lie beside each other, for worlds in which calls don't share those of events. */
export type Path = 'rpc' | 'event';
const outcomes = ['applied', 'rejected', 'skipped'] as const satisfies readonly Outcome[];
export const tooOld = 4;

export function knownOutcome(inbox: number, path: Path): Outcome | undefined {
  const code = path === 'event' ? inbox & 3 : (inbox >> 3) & 3;
  return code === 0 ? undefined : outcomes[code - 1]!;
}
export const outcomeCode = (outcome: Outcome): number => outcomes.indexOf(outcome as (typeof outcomes)[number]) + 1;
export const withOutcome = (inbox: number, path: Path, outcome: Outcome): number =>
  inbox | (outcomeCode(outcome) << (path === 'event' ? 0 : 3));

const halted = 128;
export function gateOf(gate: number, path: Path): Gate | undefined {
  const lastNumber = path === 'event' ? gate & 3 : (gate >> 2) & 3;
  if (lastNumber === 0 && (gate & halted) === 0) return undefined;
  return { generation: 1, lastNumber, halted: (gate & halted) === 0 ? undefined : 'halted' };
}
export const withNumber = (gate: number, path: Path, number: number): number =>
  path === 'event' ? (gate & ~3) | number : (gate & ~12) | (number << 2);
export const withHalt = (gate: number): number => gate | halted;

export const keyNames = ['a', 'b'] as const;
/** Events count through: those of the first key, then those of the second. */
export const keyOf = (bounds: Bounds, event: number): number => Math.floor(event / bounds.events);
export const indexOf = (bounds: Bounds, event: number): number => event % bounds.events;
export const nameOf = (bounds: Bounds, event: number): string =>
  `${keyNames[keyOf(bounds, event)]}${indexOf(bounds, event) + 1}`;
export const partitionOf = (bounds: Bounds, event: number): number =>
  bounds.partitions === 1 ? 0 : keyOf(bounds, event);
export const stageNamed = (code: number): Stage => stages[code]!;
export const stageCode = (stage: Stage): number => stages.indexOf(stage);

/** How many events of a key are committed. */
export function committedOf(bounds: Bounds, layout: Layout, world: State, key: number): number {
  let count = 0;
  while (count < bounds.events && world[layout.stamp + key * bounds.events + count] !== 0) count++;
  return count;
}

/** How far a key is counted: its highest number that is committed. */
export function countedOf(bounds: Bounds, layout: Layout, world: State, key: number): number {
  let number = 0;
  for (let index = 0; index < bounds.events; index++)
    number = Math.max(number, numberOf(world[layout.stamp + key * bounds.events + index]!));
  return number;
}

export function initialWorld(bounds: Bounds, layout: Layout): State {
  const world = new Uint8Array(layout.size);
  world[layout.stage] = stageCode(bounds.startIn ?? 'rpc');
  world[layout.epoch] = 1;
  if (bounds.notStarted !== true) world[layout.flags] = flag.sinceRecorded | flag.started;
  return world;
}
