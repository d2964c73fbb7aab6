import { TurnoutError } from '../errors/index.ts';
import type { Sequence, Stamp, Turn } from '../event/index.ts';
import type { HoldReason, Verdict } from '../inbox/index.ts';

// The decisions of a consumer: plain data in, plain data out, no I/O. They are explored by property tests.

/** How far the sequence of one source has come in one partition. */
export interface SequenceState {
  readonly generation: number;
  /** The first number seen. */
  readonly base: bigint;
  readonly last: bigint;
}

export type SequenceFinding =
  /** The message has no sequence (Debezium): losses can't be noticed. */
  | { readonly kind: 'off' }
  | { readonly kind: 'next'; readonly state: SequenceState }
  /** The numbers `from` to `to` never came. */
  | { readonly kind: 'hole'; readonly state: SequenceState; readonly from: bigint; readonly to: bigint }
  /** At or below the last: it was here before. */
  | { readonly kind: 'repeat' }
  /** From before this consumer started to read. */
  | { readonly kind: 'before-base' };

/**
 * Counts a message of a source in its partition, whatever its type. The first one seen is the base; a new generation
 * counts from 1. A late copy of an older generation is a repeat.
 */
export function countSequence(state: SequenceState | undefined, sequence: Sequence | undefined): SequenceFinding {
  if (sequence === undefined) return { kind: 'off' };
  const { generation, number } = sequence;
  if (state === undefined) return { kind: 'next', state: { generation, base: number, last: number } };
  if (generation < state.generation) return { kind: 'repeat' };
  const { base, last } = generation === state.generation ? state : { base: 1n, last: 0n };
  if (number < base) return { kind: 'before-base' };
  if (number <= last) return { kind: 'repeat' };
  const counted = { generation, base, last: number };
  return number === last + 1n
    ? { kind: 'next', state: counted }
    : { kind: 'hole', state: counted, from: last + 1n, to: number - 1n };
}

/** Longer than any event is old, in milliseconds: for those that can't be repeats. */
export const foreverMs = 100 * 365 * 24 * 60 * 60 * 1000;

/** What there is to know about a message before its effect. */
export interface Circumstances {
  readonly offset: bigint;
  /** Where the consumer started in this partition. */
  readonly since: bigint;
  readonly finding: SequenceFinding;
  /** What the event was given for this consumer, if it was in switchover. */
  readonly stamp: Stamp | undefined;
  /** Whether the consumer says that this type reaches it through a switchover. */
  readonly inSwitchover: boolean;
  /** Whether there is a handler for this type and version, for another version only, or for none. */
  readonly handler: 'present' | 'other-version' | 'none';
  /** Why the broker refused the real message, if this is its placeholder. */
  readonly refused: string | undefined;
}

export type Plan =
  /** Position and sequence advance, and that is all. */
  | { readonly kind: 'observe'; readonly why: 'before-since' | 'before-base' | 'route-rpc' | 'no-route' | 'no-handler' }
  | {
      readonly kind: 'apply';
      readonly turn: Turn | undefined;
      readonly stamped: boolean;
      /** What its sequence says: a number that was not passed before is proof that it is no repeat. */
      readonly sequence: 'new' | 'passed' | 'none';
    }
  /** It can't have its effect here and must not be passed over. */
  | {
      readonly kind: 'park';
      readonly turn: Turn | undefined;
      readonly why: 'refused' | 'handler-missing' | 'version-unhandled';
    };

/**
 * What to do with a message. The route was written with the event; nothing is looked up now, so producer and consumer
 * can't disagree. What goes by call, and what a publisher wrote that did not know of the switchover, is only observed.
 */
export function planFor({ offset, since, finding, stamp, inSwitchover, handler, refused }: Circumstances): Plan {
  if (offset < since) return { kind: 'observe', why: 'before-since' };
  if (finding.kind === 'before-base') return { kind: 'observe', why: 'before-base' };
  if (stamp?.route === 'rpc') return { kind: 'observe', why: 'route-rpc' };
  if (stamp === undefined) {
    if (inSwitchover) return { kind: 'observe', why: 'no-route' };
    if (handler === 'none') return { kind: 'observe', why: 'no-handler' };
  }
  const turn = stamp?.turn;
  if (refused !== undefined) return { kind: 'park', turn, why: 'refused' };
  // Routed here, so its effect is owed; its key number would be missing for ever.
  if (handler === 'none') return { kind: 'park', turn, why: 'handler-missing' };
  if (handler === 'other-version') return { kind: 'park', turn, why: 'version-unhandled' };
  const sequence = finding.kind === 'repeat' ? 'passed' : finding.kind === 'off' ? 'none' : 'new';
  return { kind: 'apply', turn, stamped: stamp !== undefined, sequence };
}

/**
 * What to do with an event of which it is known whether a held one of its key comes first (`blocked`), and why it is held
 * itself, if it is: it waits with the others, or is judged by `apply`. `ordered`: whether it waits for its key at all.
 */
export function onEntry(given: {
  readonly blocked: boolean;
  readonly held: HoldReason | undefined;
  readonly ordered: boolean;
}): 'held' | 'behind' | 'apply' {
  if (given.held !== undefined) return 'held';
  return given.blocked && given.ordered ? 'behind' : 'apply';
}

export type AfterVerdict =
  | { readonly kind: 'applied' }
  | { readonly kind: 'repeated' }
  /** Roll back, so that the position stays before the event, and come again. */
  | { readonly kind: 'busy' }
  /** Hold it in the same transaction, under the lock that is taken already. */
  | { readonly kind: 'hold'; readonly reason: HoldReason; readonly error?: TurnoutError };

/** What becomes of an event after the verdict of `apply`. */
export function afterVerdict(verdict: Verdict, effectKey: string): AfterVerdict {
  switch (verdict.kind) {
    case 'done':
      return { kind: verdict.repeated ? 'repeated' : 'applied' };
    case 'early':
      return { kind: 'hold', reason: 'early' };
    case 'running':
      return { kind: 'busy' };
    case 'halted':
      // Those that come while the key is halted go on when it does.
      return verdict.cause
        ? { kind: 'hold', reason: 'parked', error: new TurnoutError('TURNOUT_GATE_HALTED', verdict.reason) }
        : { kind: 'hold', reason: 'behind' };
    case 'reused': {
      const what = `The effect key ${effectKey} is known with another ${verdict.what}.`;
      return { kind: 'hold', reason: 'parked', error: new TurnoutError('TURNOUT_EFFECT_KEY_REUSED', what) };
    }
  }
}

/** Why an attempt failed: the handler; two transactions in each other's way; database or broker; another owner. */
export type FailureKind = 'handler' | 'conflict' | 'outage' | 'fenced';

/** The failures of one event so far, the last one included. */
export interface Failures {
  readonly handler: number;
  readonly conflict: number;
  readonly outage: number;
}

export type AfterFailure =
  | { readonly kind: 'retry'; readonly delayOf: number; readonly policy: 'own' | 'outage' }
  | { readonly kind: 'give-up' };

/** More conflicts than this on one event are the handler's doing. */
export const mostConflicts = 20;

/**
 * Whether to try again. An outage says nothing about the event: it is waited out, however long. Conflicts pass by
 * themselves, within reason. The handler's own failures are counted against the policy.
 */
export function afterFailure(kind: Exclude<FailureKind, 'fenced'>, failures: Failures, attempts: number): AfterFailure {
  if (kind === 'outage') return { kind: 'retry', delayOf: failures.outage, policy: 'outage' };
  if (kind === 'conflict' && failures.conflict <= mostConflicts)
    return { kind: 'retry', delayOf: failures.conflict, policy: 'own' };
  const counted = failures.handler + Math.max(0, failures.conflict - mostConflicts);
  return counted < attempts ? { kind: 'retry', delayOf: counted, policy: 'own' } : { kind: 'give-up' };
}

/** Where a consumer starts in each partition that has no position yet. */
export function startPositions(given: {
  readonly from: 'beginning' | 'now';
  readonly bounds: readonly { readonly partition: number; readonly low: bigint; readonly high: bigint }[];
  /** Partitions that have a position. */
  readonly known: ReadonlySet<number>;
  /** What the group has committed at the broker. */
  readonly committed: ReadonlyMap<number, bigint>;
}): Map<number, bigint> {
  const { from, bounds, known, committed } = given;
  const starts = new Map<number, bigint>();
  for (const { partition, low, high } of bounds) {
    if (known.has(partition)) continue;
    // A partition that was added later is read whole, whatever `from` says: events may have been written to it already. That
    // goes for a consumer's first start too: where its group has committed anything (as `turnout switch <name> rpc` does),
    // that was where it began, and what has none is of later.
    if (known.size > 0) starts.set(partition, 0n);
    else if (committed.size > 0) starts.set(partition, committed.get(partition) ?? 0n);
    else starts.set(partition, from === 'beginning' ? low : high);
  }
  return starts;
}
