import type { Queryable } from '../database/index.ts';
import { TurnoutError } from '../errors/index.ts';
import type { Route, Turn } from '../event/index.ts';
import { decide, isBeyond } from './decide.ts';
import type { Decision, Gate, Outcome } from './decide.ts';

/** One event on its way to its effect, whichever path brought it. */
export interface Arrival {
  readonly consumer: string;
  readonly effectKey: string;
  readonly eventId: string;
  readonly eventType: string;
  readonly source: string;
  readonly topic: string;
  readonly key: string | null;
  /** The event's own time, the same on both paths. */
  readonly occurredAt: Date;
  readonly path: Route;
  /** For ordered switchovers. */
  readonly turn: Turn | undefined;
  /** SHA-256 of the request body; undefined on the event path. */
  readonly requestHash?: string;
}

/** What came of running the handler. Anything but `applied` rolls its writes back. */
export interface Effect {
  readonly outcome: Outcome;
  /** JSON; given again to whoever repeats the call. */
  readonly answer?: unknown;
  /** Why, for outcomes that need an explanation. */
  readonly reason?: string;
}

export type Verdict =
  | { readonly kind: 'done'; readonly outcome: Outcome; readonly answer: unknown; readonly repeated: boolean }
  /** Nothing was written, and the transaction still holds the lock of the key: hold the event now, or give the lock back. */
  | { readonly kind: 'early'; readonly lastNumber: number; readonly generation: number }
  /** The same effect, or another of its key, is being applied: ask again. */
  | { readonly kind: 'running' }
  /** The effect key is known for another event or another body. */
  | { readonly kind: 'reused'; readonly what: string }
  /** The key stands still; `cause`: because of this very event. */
  | { readonly kind: 'halted'; readonly reason: string; readonly cause: boolean };

export interface ApplyOptions {
  /** How long outcomes are kept, in milliseconds; older unknown events can't be told from repeats. Default {@link defaultRetentionMs}. */
  readonly retentionMs?: number;
  /** Default true. False: the effect takes back its own writes unless it is `applied`, or always is. */
  readonly savepoint?: boolean;
  /**
   * After how long without a statement the server ends the transaction, and with it the lock, in milliseconds: its process
   * was paused or cut off. A time-out that the session has already stands. Default: none.
   */
  readonly idleMs?: number;
}

/** 30 days. */
export const defaultRetentionMs = 30 * 24 * 60 * 60 * 1000;

/**
 * Lets an event have its effect once. Runs inside the caller's open transaction, at READ COMMITTED; the caller commits
 * for every verdict (an alarm may have been written), or rolls back when this rejects.
 *
 * The lock of the key (ordered) or of the effect key is taken first and kept until the transaction ends; an event waits for
 * it for a second, a call doesn't, and then gets `running`. `effect` runs in a savepoint. If `effect` rejects, so does `apply`,
 * with the same error.
 *
 * @example
 * const verdict = await database.transaction((tx) =>
 *   apply(database.within(tx), arrival, async () => {
 *     await ship(tx, order);
 *     return { outcome: 'applied' };
 *   }),
 * );
 */
export async function apply(
  tx: Queryable,
  arrival: Arrival,
  effect: () => Promise<Effect>,
  options: ApplyOptions = {},
): Promise<Verdict> {
  const entry = await enter(tx, arrival, {
    retentionMs: options.retentionMs ?? defaultRetentionMs,
    leaseMs: defaultLeaseMs,
    idleMs: options.idleMs,
  });
  const { decision } = entry;
  if (decision.kind !== 'apply') return settled(tx, arrival, entry);
  const { outcome, answer, reason } = options.savepoint === false ? await effect() : await inSavepoint(tx, effect);
  await record(tx, arrival, { outcome, answer, reason, attempts: entry.attempts + 1 });
  return { kind: 'done', outcome, answer: answer ?? null, repeated: false };
}

/** How long an intent without an outcome counts as running, in milliseconds. */
export const defaultLeaseMs = 60_000;

export interface Entry {
  readonly decision: Decision;
  /** The stored answer, of a repeat. */
  readonly answer: unknown;
  /** How often the effect was begun before. */
  readonly attempts: number;
  /** Whether there is an intent that is known to have failed. */
  readonly failed: boolean;
  readonly gate?: Gate | undefined;
}

interface EntryRow {
  locked: boolean;
  too_old: boolean;
  gate_generation: number | null;
  gate_number: string | null;
  gate_halted: string | null;
  known_outcome: Outcome | 'running' | 'queued' | null;
  known_event_id: string | null;
  known_request_hash: string | null;
  known_answer: string | null;
  known_attempts: number | null;
  known_lease_over: boolean | null;
  known_failed: boolean | null;
}

/** Takes the lock, reads what there is to know, and decides. */
export async function enter(
  tx: Queryable,
  arrival: Arrival,
  { retentionMs, leaseMs, idleMs }: { retentionMs: number; leaseMs: number; idleMs?: number | undefined },
): Promise<Entry> {
  const { consumer, effectKey, occurredAt, source, topic, key, turn, path } = arrival;
  if (turn !== undefined && key === null) {
    throw new TurnoutError('TURNOUT_ROUTES_MALFORMED', `The effect ${effectKey} has a key number and no key.`, {
      details: { effectKey },
    });
  }
  const { rows } = await tx.query<EntryRow>(
    `select locked, too_old, gate_generation, gate_number, gate_halted, known_outcome, known_event_id, known_request_hash,
            known_answer, known_attempts, known_lease_over, known_failed,
            case when $11::text is not null and current_setting('idle_in_transaction_session_timeout') = '0'
                 then set_config('idle_in_transaction_session_timeout', $11::text, true) end as idle
       from turnout.enter_inbox($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
    [
      consumer,
      effectKey,
      occurredAt.toISOString(),
      source,
      topic,
      key,
      turn !== undefined,
      path === 'event',
      retentionMs,
      leaseMs,
      idleMs === undefined ? null : String(Math.ceil(idleMs)),
    ],
  );
  const row = rows[0]!;
  if (!row.locked) return { decision: { kind: 'running' }, answer: null, attempts: 0, failed: false };
  const gate =
    row.gate_number === null
      ? undefined
      : {
          generation: row.gate_generation!,
          lastNumber: Number(row.gate_number),
          halted: row.gate_halted ?? undefined,
        };
  const decision = decide({
    eventId: arrival.eventId,
    path,
    requestHash: arrival.requestHash,
    turn,
    tooOld: row.too_old,
    known:
      row.known_outcome === null
        ? undefined
        : {
            outcome: row.known_outcome,
            eventId: row.known_event_id!,
            requestHash: row.known_request_hash ?? undefined,
            leaseOver: row.known_lease_over === true || row.known_failed === true,
          },
    gate,
  });
  const answer: unknown = row.known_answer === null ? null : JSON.parse(row.known_answer);
  return { decision, answer, attempts: row.known_attempts ?? 0, failed: row.known_failed === true, gate };
}

/** The verdict of a decision that lets nothing happen; writes the alarms that belong to it, and passes a number that came with a repeat. */
export async function settled(tx: Queryable, arrival: Arrival, { decision, answer, gate }: Entry): Promise<Verdict> {
  const verdict = verdictOf(arrival, decision, answer);
  if (decision.kind === 'repeat' && arrival.turn !== undefined && isBeyond(arrival.turn, gate)) {
    await tx.query('select turnout.note_spare_number($1, $2, $3, $4, $5, $6, $7)', [
      arrival.consumer,
      arrival.effectKey,
      arrival.source,
      arrival.topic,
      arrival.key,
      arrival.turn.generation,
      arrival.turn.number,
    ]);
  }
  if (decision.kind === 'skip') await raiseOnce(tx, arrival, 'skipped-old');
  if (verdict.kind === 'halted' && verdict.cause) {
    await tx.query('select turnout.halt_key($1, $2, $3, $4, $5, $6)', [
      arrival.consumer,
      arrival.source,
      arrival.topic,
      arrival.key,
      verdict.reason,
      JSON.stringify(describe(arrival)),
    ]);
  }
  return verdict;
}

/** What a decision that lets nothing happen says to who asked; plain data in, plain data out. */
export function verdictOf(
  { turn, effectKey }: Pick<Arrival, 'turn' | 'effectKey'>,
  decision: Decision,
  answer: unknown,
): Verdict {
  switch (decision.kind) {
    case 'repeat':
      return { kind: 'done', outcome: decision.outcome, answer, repeated: true };
    case 'duplicate':
      // It had its effect then, as far as anybody can tell.
      return { kind: 'done', outcome: 'applied', answer: null, repeated: true };
    case 'skip':
      return { kind: 'done', outcome: 'skipped', answer: null, repeated: false };
    case 'halt': {
      const reason = `Number ${turn!.number} of generation ${turn!.generation} is past, and the effect ${effectKey} is not known.`;
      return { kind: 'halted', reason, cause: true };
    }
    case 'halted':
      return { ...decision, cause: false };
    case 'apply':
      throw new Error('A decision to apply is carried out by apply().');
    default:
      return decision;
  }
}

export interface Ending {
  readonly outcome: Outcome | 'running' | 'queued';
  readonly answer?: unknown;
  readonly reason?: string | undefined;
  readonly attempts: number;
}

/** Writes the outcome and moves the gate; only under the lock that {@link enter} took. */
export async function record(
  tx: Queryable,
  arrival: Arrival,
  { outcome, answer, reason, attempts }: Ending,
): Promise<void> {
  await tx.query(
    'select turnout.record_outcome($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)',
    [
      arrival.consumer,
      arrival.effectKey,
      arrival.occurredAt.toISOString(),
      arrival.eventId,
      arrival.eventType,
      arrival.source,
      arrival.topic,
      arrival.key,
      arrival.turn?.generation ?? null,
      arrival.turn?.number ?? null,
      arrival.path,
      outcome,
      arrival.requestHash ?? null,
      answer === undefined || answer === null ? null : JSON.stringify(answer),
      reason ?? null,
      attempts,
    ],
  );
}

async function inSavepoint(tx: Queryable, effect: () => Promise<Effect>): Promise<Effect> {
  await tx.query('savepoint turnout_effect');
  const result = await effect();
  if (result.outcome !== 'applied') await tx.query('rollback to savepoint turnout_effect');
  // Fails if a statement of the effect failed and was swallowed: then nothing of it may stay.
  await tx.query('release savepoint turnout_effect');
  return result;
}

/** One alarm for one effect, however often it comes back. */
async function raiseOnce(tx: Queryable, arrival: Arrival, kind: string): Promise<void> {
  await tx.query(
    `insert into turnout.alarm (consumer, kind, detail)
     select $1::text, $2::text, $3::jsonb
     where not exists (select from turnout.alarm a where a.consumer = $1 and a.kind = $2 and a.detail ->> 'effectKey' = $4::text)`,
    [arrival.consumer, kind, JSON.stringify(describe(arrival)), arrival.effectKey],
  );
}

function describe(arrival: Arrival): object {
  const { effectKey, eventId, eventType, source, topic, key, occurredAt, path, turn } = arrival;
  return { effectKey, eventId, eventType, source, topic, key, occurredAt: occurredAt.toISOString(), path, ...turn };
}
