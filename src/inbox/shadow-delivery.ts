// Stage shadow at the consumer: that the Kafka copies come. The call's side of it is written by the endpoint.
import { createHash } from 'node:crypto';
import type { Queryable } from '../database/index.ts';

/** The copy of an event that was stamped in stage shadow, as its consumer sees it. */
export interface ShadowArrival {
  readonly effectKey: string;
  readonly eventType: string;
  readonly source: string;
  readonly topic: string;
  readonly partition: number;
  readonly offset: string;
  /** For events whose order counts: their key, and their place among those of it. */
  readonly key: string | null;
  readonly generation: number | null;
  readonly place: string | null;
  readonly epoch: number;
  readonly occurredAt: string;
  /** Why it could not have had its effect here, if so: a code, and the path of what is wrong; never a value. */
  readonly problem: string | null;
  readonly bucket: number;
  readonly sample: number;
}

const buckets = 10_000;

/** Where an effect lies between 0 and 9,999: the same at the call and at the arrival, and not in any order. */
export function bucketOf(effectKey: string): number {
  return createHash('sha256').update(effectKey).digest().readUInt32BE() % buckets;
}

/** A share from 0 to 1, as the number of buckets below which an effect belongs to it. */
export function sampleOf(share: number): number {
  return Math.round(share * buckets);
}

/** Writes that copies have come. One that comes again changes nothing. */
export async function recordArrivals(
  database: Queryable,
  consumer: string,
  arrivals: readonly ShadowArrival[],
): Promise<void> {
  await database.query('select turnout.record_shadow_arrivals($1, $2::jsonb)', [consumer, JSON.stringify(arrivals)]);
}

/** Removes what shadow found longer ago than it is kept, in small steps; gives how many rows went in this one. */
export async function deleteOldShadow(database: Queryable, consumer: string): Promise<number> {
  const { rows } = await database.query<{ gone: number }>(
    "select turnout.delete_old_shadow($1, '7 days', '30 days', 1000) as gone",
    [consumer],
  );
  return rows[0]!.gone;
}
