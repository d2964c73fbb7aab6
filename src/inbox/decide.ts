import type { Route, Turn } from '../event/index.ts';

/**
 * How an effect ended: `applied`; `rejected`, the handler refused it for good (a 4xx of the old endpoint); `skipped`,
 * too old or by an operator; `dead`, given up after repeated failure. Each of them consumes the key number.
 */
export type Outcome = 'applied' | 'rejected' | 'skipped' | 'dead';

/** What the inbox says about an effect key. `running` and `queued` are intents: written before the effect, without an outcome yet. */
export interface KnownEffect {
  readonly outcome: Outcome | 'running' | 'queued';
  readonly eventId: string;
  readonly requestHash: string | undefined;
  /** Whether an intent is so old that whoever wrote it must have died. */
  readonly leaseOver: boolean;
}

/** How far a key has come at the consumer. */
export interface Gate {
  readonly generation: number;
  readonly lastNumber: number;
  /** Why the key stands still, if it does. */
  readonly halted: string | undefined;
}

/** All that decides about an arrival, read under its lock. */
export interface Situation {
  readonly eventId: string;
  readonly path: Route;
  readonly requestHash: string | undefined;
  readonly turn: Turn | undefined;
  /** Whether the event is older than the inbox keeps outcomes. */
  readonly tooOld: boolean;
  readonly known: KnownEffect | undefined;
  readonly gate: Gate | undefined;
}

export type Decision =
  /** Let it have its effect, and move the gate to its number. */
  | { readonly kind: 'apply' }
  /** It had its effect: give the stored outcome again. */
  | { readonly kind: 'repeat'; readonly outcome: Outcome }
  /** At or below the last number, and too old for the inbox to know: it had its effect then. */
  | { readonly kind: 'duplicate' }
  /** Unordered, unknown and too old to tell: not applied, and an alarm says so. */
  | { readonly kind: 'skip' }
  /** Its turn has not come. */
  | { readonly kind: 'early'; readonly generation: number; readonly lastNumber: number }
  /** Somebody else is at it. */
  | { readonly kind: 'running' }
  /** The effect key belongs to something else. */
  | { readonly kind: 'reused'; readonly what: 'event id' | 'request body' }
  /** It should be known and is not: the key stops until somebody has looked. */
  | { readonly kind: 'halt' }
  /** The key has been stopped before. */
  | { readonly kind: 'halted'; readonly reason: string };

/**
 * The decision about one arrival, for both paths: the effect key drops duplicates, the key number orders.
 * Nothing at or below a key's last number is ever applied.
 */
export function decide(situation: Situation): Decision {
  const { known, gate, turn, tooOld } = situation;
  if (known !== undefined) return decideKnown(situation, known);
  if (turn === undefined) return tooOld ? { kind: 'skip' } : { kind: 'apply' };
  if (gate?.halted !== undefined) return { kind: 'halted', reason: gate.halted };

  // A higher generation counts from 1 again; so does a key that was never seen.
  const counted =
    gate !== undefined && gate.generation >= turn.generation ? gate : { generation: turn.generation, lastNumber: 0 };
  const isPast = turn.generation < counted.generation || turn.number <= counted.lastNumber;
  if (isPast) return tooOld ? { kind: 'duplicate' } : { kind: 'halt' };
  if (turn.number === counted.lastNumber + 1) return { kind: 'apply' };
  return { kind: 'early', generation: counted.generation, lastNumber: counted.lastNumber };
}

function decideKnown(situation: Situation, known: KnownEffect): Decision {
  if (known.eventId !== situation.eventId) return { kind: 'reused', what: 'event id' };
  // An effect that came as an event has no request; then there is nothing to compare.
  if (
    known.requestHash !== undefined &&
    situation.requestHash !== undefined &&
    known.requestHash !== situation.requestHash
  ) {
    return { kind: 'reused', what: 'request body' };
  }
  if (known.outcome === 'running' || known.outcome === 'queued') {
    // Its number was the next one when the intent was written, and none can have passed it.
    return known.outcome === 'running' && known.leaseOver ? { kind: 'apply' } : { kind: 'running' };
  }
  return { kind: 'repeat', outcome: known.outcome };
}

/**
 * Whether the gate has not come to a number yet. A repeat has one only if its event was published twice under one id: nobody
 * will consume it, so it has to be passed, or the key waits for ever.
 */
export function isBeyond({ generation, number }: Turn, gate: Gate | undefined): boolean {
  if (gate === undefined) return true;
  return generation > gate.generation || (generation === gate.generation && number > gate.lastNumber);
}
