import type { Queryable } from '../database/index.ts';
import type { Message, Turn } from '../event/index.ts';
import type { Arrival } from './apply.ts';

/**
 * Why an event waits, for operators: its turn has not come; it failed for good; a held one of its key comes first, or the
 * key is halted. Only `parked` counts when the next one is looked for.
 */
export type HoldReason = 'early' | 'parked' | 'behind';

/** A Kafka message and where it was read. */
export interface HeldMessage extends Message {
  readonly topic: string;
  readonly partition: number;
  readonly offset: bigint;
}

export interface Held {
  /** In the order in which they were held. */
  readonly id: bigint;
  readonly effectKey: string;
  readonly reason: HoldReason;
  readonly source: string;
  /** Whom it waits behind; none for an event whose order doesn't matter. */
  readonly key: string | null;
  readonly turn: Turn | undefined;
  readonly message: HeldMessage;
  readonly error: string | undefined;
  readonly attempts: number;
}

/** Whose events are counted together. */
export interface KeyOfGate {
  readonly consumer: string;
  readonly source: string;
  readonly topic: string;
  readonly key: string;
}

/** `done`: the event has its outcome by now; `busy`: somebody is at it, or at its key, just now, and nothing was written. */
export type HoldResult = 'held' | 'done' | 'busy';

/**
 * Keeps an event until its turn comes, or until an operator decides. Takes the lock that `apply` takes: in a transaction in
 * which `apply` said `early` it is there already, and keeps whoever applies the missing number from looking too soon.
 * Held again, reason and error are renewed.
 */
export async function hold(
  tx: Queryable,
  arrival: Arrival,
  message: HeldMessage,
  reason: HoldReason,
  { error, attempts = 0 }: { readonly error?: string; readonly attempts?: number } = {},
): Promise<HoldResult> {
  const { rows } = await tx.query<{ result: HoldResult }>(
    'select turnout.hold_event($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) as result',
    [
      arrival.consumer,
      arrival.effectKey,
      arrival.occurredAt.toISOString(),
      reason,
      arrival.source,
      arrival.topic,
      message.partition,
      message.offset.toString(),
      arrival.key,
      arrival.turn?.generation ?? null,
      arrival.turn?.number ?? null,
      encodeMessage(message),
      storable(error),
      attempts,
    ],
  );
  return rows[0]!.result;
}

/**
 * Keeps the number of an event that is held already and comes again with another one, or its key would wait for that number for ever.
 * `busy`: somebody is at it, or it is held no more; nothing was written.
 */
export async function holdNumber(tx: Queryable, arrival: Arrival): Promise<'held' | 'busy'> {
  const { consumer, effectKey, occurredAt, source, topic, key, turn } = arrival;
  const { rows } = await tx.query<{ result: 'held' | 'busy' }>(
    'select turnout.hold_number($1, $2, $3, $4, $5, $6, $7, $8) as result',
    [consumer, effectKey, occurredAt.toISOString(), source, topic, key, turn?.generation ?? null, turn?.number ?? null],
  );
  return rows[0]!.result;
}

/** Notes that an attempt at a held event has failed. One that is held no more stays away. */
export async function noteHeldFailure(
  tx: Queryable,
  consumer: string,
  effectKey: string,
  { reason, error, attempts }: { readonly reason: HoldReason; readonly error: string; readonly attempts: number },
): Promise<void> {
  await tx.query(
    'update turnout.held set reason = $3, error = $4, attempts = $5 where consumer = $1 and effect_key = $2',
    [consumer, effectKey, reason, storable(error), attempts],
  );
}

/** Postgres can't store NUL in text. */
function storable(error: string | undefined): string | null {
  return error?.replaceAll('\0', '\uFFFD') ?? null;
}

interface HeldRow {
  id: string;
  effect_key: string;
  reason: HoldReason;
  source: string;
  topic: string;
  partition: number;
  offset: string;
  key: string | null;
  generation: number | null;
  number: string | null;
  message: string;
  error: string | null;
  attempts: number;
}

const heldColumns = `h.id::text as id, h.effect_key, h.reason, h.source, h.topic, h.partition, h."offset"::text as offset, h.key,
  h.generation, h.number::text as number, h.message::text as message, h.error, h.attempts`;

/**
 * SQL: whether the gate `g` (none yet: before its first number) lets a held event be looked at, as in decide(): its number is the next one,
 * or past. A past one is a repeat, or an alarm; waiting helps neither.
 */
const isDue = (held: string): string =>
  `(${held}.generation < g.generation or (${held}.generation = g.generation and ${held}.number <= g.last_number + 1)
    or (${held}.generation > coalesce(g.generation, 0) and ${held}.number = 1))`;

/**
 * SQL: whether the held event `b`, whose gate is `g`, is in the way of a later one of its key. Events with a number wait for each other by it,
 * so only those without are in their way. Those without wait for all, save for what itself waits for a number that has not come.
 */
export const isInTheWay = (laterHasNumber: string): string =>
  `(b.number is null or (not ${laterHasNumber} and (b.reason = 'parked' or g.halted is not null or ${isDue('b')})))`;

/** SQL: whether the held event `h` is the next of its key, with a number or without. Without a key it waits for nobody. */
const isNext = `h.reason <> 'parked' and (h.number is null or (g.halted is null and ${isDue('h')}))
  and (h.key is null or not exists (
    select from turnout.held b
     where b.consumer = h.consumer and b.source = h.source and b.topic = h.topic and b.key = h.key and b.id < h.id
       and ${isInTheWay('(h.number is not null)')}))`;

/** The next held event of a key, if it can go on. Apply it in a further transaction, which removes it, and ask again. */
export async function nextHeld(tx: Queryable, { consumer, source, topic, key }: KeyOfGate): Promise<Held | undefined> {
  const { rows } = await tx.query<HeldRow>(
    `select ${heldColumns}
       from turnout.held h
       left join turnout.gate g using (consumer, source, topic, key)
      where h.consumer = $1 and h.source = $2 and h.topic = $3 and h.key = $4 and ${isNext}
      order by h.generation, h.number, h.id
      limit 1`,
    [consumer, source, topic, key],
  );
  return rows[0] === undefined ? undefined : toHeld(rows[0]);
}

/**
 * Held events that can go on, the next one of each key, by page: because a crash came between a number and its successors,
 * or a call brought the missing one, or a parked one has had its effect, was skipped, or is to be tried again.
 */
export async function heldThatCanGoOn(
  tx: Queryable,
  consumer: string,
  { after, limit }: { readonly after: bigint; readonly limit: number },
): Promise<Held[]> {
  const { rows } = await tx.query<HeldRow>(
    `select ${heldColumns}
       from turnout.held h
       left join turnout.gate g using (consumer, source, topic, key)
      where h.consumer = $1 and h.id > $2::bigint and ${isNext}
      order by h.id
      limit $3`,
    [consumer, after.toString(), limit],
  );
  return rows.map(toHeld);
}

/** Lets go of a held event without an outcome. One that gets an outcome by `apply` is removed by it. */
export async function release(tx: Queryable, consumer: string, effectKey: string): Promise<void> {
  await tx.query('delete from turnout.held where consumer = $1 and effect_key = $2', [consumer, effectKey]);
}

function toHeld(row: HeldRow): Held {
  return {
    id: BigInt(row.id),
    effectKey: row.effect_key,
    reason: row.reason,
    source: row.source,
    key: row.key,
    turn: row.number === null ? undefined : { generation: row.generation!, number: Number(row.number) },
    message: { topic: row.topic, partition: row.partition, offset: BigInt(row.offset), ...decodeMessage(row.message) },
    error: row.error ?? undefined,
    attempts: row.attempts,
  };
}

/** As readable JSON where it can be: operators look at it. What jsonb can't hold (NUL, bytes that are no text) goes as base64. */
function encodeMessage({ key, value, headers }: Message): string {
  const text = value?.toString() ?? null;
  const readable = JSON.stringify({ key, value: text, headers });
  if (!readable.includes('\\u0000') && (value === null || Buffer.from(text!).equals(value))) return readable;
  return JSON.stringify({
    base64: Buffer.from(JSON.stringify({ key, value: value?.toString('base64') ?? null, headers })).toString('base64'),
  });
}

function decodeMessage(stored: string): Message {
  const message = JSON.parse(stored) as {
    base64?: string;
    key: string | null;
    value: string | null;
    headers: Record<string, string>;
  };
  if (message.base64 === undefined) {
    return {
      key: message.key,
      value: message.value === null ? null : Buffer.from(message.value),
      headers: message.headers,
    };
  }
  const inner = JSON.parse(Buffer.from(message.base64, 'base64').toString()) as typeof message;
  return {
    key: inner.key,
    value: inner.value === null ? null : Buffer.from(inner.value, 'base64'),
    headers: inner.headers,
  };
}
