// Which held event of a key may go on, as plain data in, plain data out. held.ts and the consumer's fence ask the same in SQL, over
// indexes; a test holds both equal on PostgreSQL, and the explorer runs this one.
import type { Turn } from '../event/index.ts';
import type { Gate } from './decide.ts';
import type { HoldReason } from './held.ts';

/** A held event as seen by those of its key. */
export interface HeldOfKey {
  /** Ascending in the order in which events were held. */
  readonly id: number;
  readonly effectKey: string;
  readonly reason: HoldReason;
  readonly turn: Turn | undefined;
}

/** Whether the gate lets a number be looked at: it is the next one, or past. A past one is a repeat, or an alarm. */
export function isDue(turn: Turn, gate: Gate | undefined): boolean {
  if (gate !== undefined && turn.generation === gate.generation) return turn.number <= gate.lastNumber + 1;
  if (gate !== undefined && turn.generation < gate.generation) return true;
  return turn.number === 1;
}

/**
 * Whether a held event is in the way of a later one of its key. Events with a number wait for each other by it, so only those
 * without are in their way. Those without wait for all, save for what itself waits for a number that has not come.
 */
export function isInTheWayOf(
  { reason, turn }: Pick<HeldOfKey, 'reason' | 'turn'>,
  gate: Gate | undefined,
  laterHasNumber: boolean,
): boolean {
  if (turn === undefined) return true;
  return !laterHasNumber && (reason === 'parked' || gate?.halted !== undefined || isDue(turn, gate));
}

/** The next of the held events of one key, if it can go on. */
export function nextOf(held: readonly HeldOfKey[], gate: Gate | undefined): HeldOfKey | undefined {
  const turns = held.filter((each) => mayGoOn(each, held, gate));
  return turns.toSorted(byNumber)[0];
}

function mayGoOn(each: HeldOfKey, held: readonly HeldOfKey[], gate: Gate | undefined): boolean {
  if (each.reason === 'parked') return false;
  if (each.turn !== undefined && (gate?.halted !== undefined || !isDue(each.turn, gate))) return false;
  return !held.some((other) => other.id < each.id && isInTheWayOf(other, gate, each.turn !== undefined));
}

/** Those without a number last. */
function byNumber({ id, turn }: HeldOfKey, other: HeldOfKey): number {
  if (turn === undefined || other.turn === undefined) {
    if (turn === other.turn) return id - other.id;
    return turn === undefined ? 1 : -1;
  }
  return turn.generation - other.turn.generation || turn.number - other.turn.number || id - other.id;
}
