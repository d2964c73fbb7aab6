import type { Queryable } from '../database/index.ts';
import type { Message, Turn } from '../event/index.ts';
import type { Arrival } from './apply.ts';

/** Why an event waits: its turn has not come; it failed for good; it comes after one that did. */
export type HoldReason = 'early' | 'parked' | 'behind';

/** A Kafka message and where it was read. */
export interface HeldMessage extends Message {
  readonly topic: string;
  readonly partition: number;
  readonly offset: bigint;
}

export interface Held {
  readonly effectKey: string;
  readonly reason: HoldReason;
  readonly source: string;
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

/**
 * Keeps an event until its turn comes, or until an operator decides. In the transaction in which `apply` said `early`,
 * since its lock keeps whoever applies the missing number from looking too soon. Held again, reason and error are renewed.
 */
export async function hold(
  tx: Queryable,
  arrival: Arrival,
  message: HeldMessage,
  reason: HoldReason,
  { error, attempts = 0 }: { readonly error?: string; readonly attempts?: number } = {},
): Promise<void> {
  await tx.query(
    `insert into turnout.held (consumer, effect_key, reason, source, topic, partition, "offset", key, generation, number, message, error, attempts)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
     on conflict (consumer, effect_key) do update
       set reason = excluded.reason, error = excluded.error, attempts = excluded.attempts`,
    [
      arrival.consumer,
      arrival.effectKey,
      reason,
      arrival.source,
      arrival.topic,
      message.partition,
      message.offset.toString(),
      arrival.key,
      arrival.turn?.generation ?? null,
      arrival.turn?.number ?? null,
      encodeMessage(message),
      // Postgres can't store NUL in text.
      error?.replaceAll('\0', '\uFFFD') ?? null,
      attempts,
    ],
  );
}

interface HeldRow {
  effect_key: string;
  reason: HoldReason;
  source: string;
  topic: string;
  partition: number;
  offset: string;
  generation: number | null;
  number: string | null;
  message: string;
  error: string | null;
  attempts: number;
}

const heldColumns = `h.effect_key, h.reason, h.source, h.topic, h.partition, h."offset"::text as offset, h.generation,
  h.number::text as number, h.message::text as message, h.error, h.attempts`;

/** A held event is next if its gate (none yet: before its first number) stands right before it, as in decide(); a parked one waits for an operator, or for the call. */
const isNext = `h.reason in ('early', 'behind') and g.halted is null
  and ((h.generation = g.generation and h.number = g.last_number + 1) or (h.generation > coalesce(g.generation, 0) and h.number = 1))`;

/** The held event of a key whose turn it is, if any. Apply it in a further transaction, which removes it, and ask again. */
export async function nextHeld(tx: Queryable, { consumer, source, topic, key }: KeyOfGate): Promise<Held | undefined> {
  const { rows } = await tx.query<HeldRow>(
    `select ${heldColumns}
       from turnout.held h
       left join turnout.gate g using (consumer, source, topic, key)
      where h.consumer = $1 and h.source = $2 and h.topic = $3 and h.key = $4 and ${isNext}
      order by h.generation, h.number
      limit 1`,
    [consumer, source, topic, key],
  );
  return rows[0] === undefined ? undefined : toHeld(rows[0]);
}

/** Keys that have a held event whose turn has come: what a crash between applying a number and draining its successors left. */
export async function keysToDrain(tx: Queryable, consumer: string, limit: number): Promise<KeyOfGate[]> {
  const { rows } = await tx.query<KeyOfGate>(
    `select distinct h.consumer, h.source, h.topic, h.key
       from turnout.held h
       left join turnout.gate g using (consumer, source, topic, key)
      where h.consumer = $1 and ${isNext}
      limit $2`,
    [consumer, limit],
  );
  return rows.map(({ source, topic, key }) => ({ consumer, source, topic, key }));
}

/**
 * The oldest waiting event of each key that has no numbers (plain subscribers), where none is parked before it: what can
 * go on because the parked one has had its effect, was skipped, or is to be tried again. Those without a key wait for nobody.
 */
export async function headsBehind(tx: Queryable, consumer: string, limit: number): Promise<Held[]> {
  const { rows } = await tx.query<HeldRow>(
    `select ${heldColumns}
       from (select distinct on (f.source, f.topic, f.key, case when f.key is null then f.id end) f.*
               from turnout.held f
              where f.consumer = $1 and f.number is null
              order by f.source, f.topic, f.key, case when f.key is null then f.id end, f.id) h
      where h.reason = 'behind'
      order by h.id
      limit $2`,
    [consumer, limit],
  );
  return rows.map(toHeld);
}

/** Lets go of a held event without an outcome. One that gets an outcome by `apply` is removed by it. */
export async function release(tx: Queryable, consumer: string, effectKey: string): Promise<void> {
  await tx.query('delete from turnout.held where consumer = $1 and effect_key = $2', [consumer, effectKey]);
}

function toHeld(row: HeldRow): Held {
  return {
    effectKey: row.effect_key,
    reason: row.reason,
    source: row.source,
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
