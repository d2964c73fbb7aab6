// What is known of a switchover, from the three places that know it: the producer's database, the broker, the consumer's database.
import type { Source } from '../consumer/index.ts';
import type { Queryable } from '../database/index.ts';
import { TurnoutError } from '../errors/index.ts';
import type { Ordering } from '../event/index.ts';
import { sleep } from '../lifecycle/index.ts';
import type { CheckFacts } from './checks.ts';
import type { ConsumedSequence, ConsumerEvidence, EvidenceQuestion } from './evidence.ts';
import type { Stage } from './stage.ts';

/** Where to ask about a consumer; what is left out is not known. */
export interface ConsumerView {
  /** A broker: is anybody consuming, and how far are they? */
  readonly broker?: Pick<Source, 'running' | 'bounds' | 'committed'> | undefined;
  /** The consumer's database, or what serves its evidence. */
  readonly evidence?: ((question: EvidenceQuestion) => Promise<ConsumerEvidence>) | undefined;
}

/** A switchover as its row and its history tell it. */
export interface SwitchoverState {
  readonly name: string;
  readonly consumer: string;
  readonly topic: string;
  readonly order: Ordering;
  readonly endpoint: 'wrapped' | 'bridged';
  readonly stage: Stage;
  readonly percent: number;
  readonly epoch: number;
  readonly sinceRecorded: boolean;
  /** Since the last stage change, in milliseconds, by the database's clock. */
  readonly inStageMs: number;
}

/** Reads the switchovers of a source, or the one named; cheap enough for every few seconds. */
export async function switchoverStates(database: Queryable, source: string, name?: string): Promise<SwitchoverState[]> {
  interface Row extends Omit<SwitchoverState, 'percent' | 'epoch'> {
    percent: string;
    epoch: string;
  }
  const { rows } = await database.query<Row>(
    `select s.name, s.consumer, s.topic, s.ordering as "order", s.endpoint, s.stage, s.percent::text as percent, s.epoch::text as epoch,
            s.since is not null as "sinceRecorded",
            greatest(0, extract(epoch from clock_timestamp() - coalesce(h.at, s.created_at)) * 1000)::float8 as "inStageMs"
       from turnout.switchover s
       left join lateral (
         select min(h.at) as at from turnout.switchover_history h
          where h.source = s.source and h.switchover = s.name and h.epoch = s.epoch) h on true
      where s.source = $1 and ($2::text is null or s.name = $2)
      order by s.name`,
    [source, name ?? null],
  );
  return rows.map((row) => ({ ...row, percent: Number(row.percent), epoch: Number(row.epoch) }));
}

/** Reads one switchover. Throws TURNOUT_SWITCHOVER_UNKNOWN. */
export async function switchoverState(database: Queryable, source: string, name: string): Promise<SwitchoverState> {
  const [state] = await switchoverStates(database, source, name);
  if (state !== undefined) return state;
  throw new TurnoutError('TURNOUT_SWITCHOVER_UNKNOWN', `Switchover ${name} does not exist in source ${source}.`, {
    details: { switchover: name, source },
  });
}

/** How far behind each partition is. Positions come from the consumer's database if it can be read, else from what the group has committed. */
export async function partitionsBehind(
  broker: NonNullable<ConsumerView['broker']>,
  evidence: ConsumerEvidence | undefined,
  consumer: string,
  topic: string,
): Promise<NonNullable<CheckFacts['partitions']>> {
  const [bounds, committed] = await Promise.all([broker.bounds(topic), broker.committed(consumer, topic)]);
  return bounds.map(({ partition, low, high }) => {
    const position = evidence?.positions.find((each) => each.topic === topic && each.partition === partition);
    const next = position === undefined ? (committed.get(partition) ?? low) : BigInt(position.next);
    return { topic, partition, lag: Number(high > next ? high - next : 0n), idleMs: position?.idleMs };
  });
}

/**
 * How old the oldest event is that was published and that the consumer has not read, in milliseconds, by the clock of the producer's
 * database; 0: it has read all. The relay's ticks hold the counts that the consumer's sequences are held against. Undefined if neither
 * tells anything. At most 20,000 ticks are looked at: an older one than these gives the age of the last of them.
 */
export async function unreadMs(
  database: Queryable,
  source: string,
  topic: string,
  consumed: readonly ConsumedSequence[],
): Promise<number | undefined> {
  const mine = consumed.filter((each) => each.source === source && each.topic === topic);
  if (mine.length === 0) return undefined;
  const { rows } = await database.query<{ ms: number | null }>(
    `with newest as materialized (
       select t.tick, t.numbers from turnout.relay_tick t where t.shard = 0 order by t.tick desc limit 1
     ), read as materialized (
       select r.partition, r.sequence, s.name || '/' || r.generation as counted from jsonb_to_recordset($3::jsonb) as r (partition integer, generation integer, sequence bigint)
         join turnout.source s on s.name = $1 and s.generation = r.generation
     ), ticks as (
       select t.tick, t.at, t.numbers from turnout.relay_tick t, newest n
        where t.shard = 0 and t.tick > n.tick - 20000
     )
     select case when not exists (select from newest) or not exists (select from read) then null
            else coalesce(max(extract(epoch from clock_timestamp() - behind.at) * 1000), 0)::float8 end as ms
       from read r
       cross join newest n
       -- The newest tick that began with no more than was read: the next event was published in it.
       left join lateral (
         select t.at from ticks t
          where coalesce((t.numbers -> r.counted -> $2 ->> r.partition)::bigint, 0) <= r.sequence order by t.tick desc limit 1
       ) known on true
       left join lateral (
         select coalesce(known.at, (select min(t.at) from ticks t)) as at
          where coalesce((n.numbers -> r.counted -> $2 ->> r.partition)::bigint, 0) > r.sequence
       ) behind on true`,
    [
      source,
      topic,
      JSON.stringify(mine.map(({ partition, generation, sequence }) => ({ partition, generation, sequence }))),
    ],
  );
  return rows[0]?.ms ?? undefined;
}

/** Asks for evidence, and waits for it no longer than `timeoutMs`: it may come over HTTP, from a service that hangs. */
export async function askForEvidence(
  view: ConsumerView,
  question: EvidenceQuestion,
  timeoutMs = 10_000,
): Promise<{ readonly evidence?: ConsumerEvidence; readonly error?: string }> {
  if (view.evidence === undefined) return {};
  const enough = new AbortController();
  try {
    const answer = view.evidence(question);
    const late = sleep(timeoutMs, enough.signal).then(() => undefined);
    const evidence = await Promise.race([answer, late]);
    answer.catch(() => undefined);
    return evidence === undefined ? { error: `it did not come within ${timeoutMs} ms` } : { evidence };
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) };
  } finally {
    enough.abort();
  }
}
