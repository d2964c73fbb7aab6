// Which calls that are owed the sweeper may make now, as plain data in, plain data out. The sweeper's statements in sweeper.ts
// decide the same in SQL, over indexes and with row locks; a test holds both equal on PostgreSQL, and the explorer runs this one.
import type { Turn } from '../../event/index.ts';

/** What a row of turnout.rpc_delivery says to the sweeper. */
export interface OwedRow {
  readonly effectKey: string;
  readonly switchover: string;
  readonly consumer: string;
  readonly topic: string;
  readonly key: string | null;
  readonly turn: Turn | undefined;
  /** In milliseconds. Undefined: a process promised to call right after its commit. */
  readonly dueAt: number | undefined;
}

/** From when a row counts as left behind by the process that promised to call, after the sweeper first sees it. In milliseconds. */
export const adoptedForMs = (timeoutMs: number): number => 2 * timeoutMs;

/** How long nobody else takes a row that was claimed: the call and, if it has to send missing events first, a few more. In milliseconds. */
export const leasedForMs = (timeoutMs: number): number => 5 * timeoutMs;

/** The rows of a switchover that a process promised to deliver, with the time from which they count as left behind. */
export function adopt<Row extends OwedRow>(
  rows: readonly Row[],
  { switchover, now, timeoutMs }: { readonly switchover: string; readonly now: number; readonly timeoutMs: number },
): Row[] {
  return rows
    .filter((row) => row.switchover === switchover && row.dueAt === undefined)
    .map((row) => ({ ...row, dueAt: now + adoptedForMs(timeoutMs) }));
}

/**
 * The rows of a switchover whose calls may be made now, the longest due first: of an ordered key only the one with the
 * lowest number, so that its calls are made in order. `rows`: all that are owed by the source.
 */
export function claimable<Row extends OwedRow>(
  rows: readonly Row[],
  { switchover, now, limit }: { readonly switchover: string; readonly now: number; readonly limit: number },
): Row[] {
  return rows
    .filter((row) => row.switchover === switchover && row.dueAt !== undefined && row.dueAt <= now)
    .filter((row) => !rows.some((other) => isBefore(other, row)))
    .toSorted((one, other) => one.dueAt! - other.dueAt!)
    .slice(0, limit);
}

/** Whether `one` is of the same ordered key and comes first. */
function isBefore(one: OwedRow, other: OwedRow): boolean {
  if (one.turn === undefined || other.turn === undefined) return false;
  if (one.consumer !== other.consumer || one.topic !== other.topic || one.key !== other.key) return false;
  if (one.turn.generation !== other.turn.generation) return one.turn.generation < other.turn.generation;
  return one.turn.number < other.turn.number;
}
