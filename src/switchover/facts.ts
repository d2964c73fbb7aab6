// What is known of a switchover, from the three places that know it: the producer's database, the broker, the consumer's database.
import type { Source } from '../consumer/index.ts';
import type { Queryable } from '../database/index.ts';
import { TurnoutError } from '../errors/index.ts';
import type { Ordering } from '../event/index.ts';
import { sleep } from '../lifecycle/index.ts';
import type { CheckFacts } from './checks.ts';
import { answers } from './evidence.ts';
import type { ConsumedSequence, ConsumerEvidence, EvidenceQuestion, EvidenceScope } from './evidence.ts';
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
  readonly source: string;
  readonly consumer: string;
  readonly topic: string;
  readonly eventTypes: readonly string[];
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
    `select s.name, s.source, s.consumer, s.topic, to_jsonb(s.event_types) as "eventTypes", s.ordering as "order", s.endpoint, s.stage, s.percent::text as percent, s.epoch::text as epoch,
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

/** Whose numbers are asked for: a consumer may have several switchovers, and what one has done proves nothing of another. */
export function scopeOf({ source, topic, eventTypes }: SwitchoverState): Required<EvidenceScope> {
  return { source, topic, eventTypes };
}

/**
 * How old the oldest event is that was published and that the consumer has not read, in milliseconds, by the clock of the producer's
 * database; 0: it has read all. The relay's ticks hold the counts that the consumer's sequences are held against, for every partition
 * that anything was published to. A partition that was never read counts from the beginning, or from `withinMs` ago: a consumer that
 * started at the end of a topic does not owe what was there before. Undefined if neither tells anything. At most 20,000 ticks are
 * looked at: an older event than these has the age of the last of them.
 */
export async function unreadMs(
  database: Queryable,
  source: string,
  topic: string,
  consumed: readonly ConsumedSequence[],
  { withinMs }: { readonly withinMs?: number } = {},
): Promise<number | undefined> {
  const mine = consumed.filter((each) => each.source === source && each.topic === topic);
  const { rows } = await database.query<{ ms: number | null }>(unreadStatement, [
    source,
    topic,
    JSON.stringify(mine.map(({ partition, generation, sequence }) => ({ partition, generation, sequence }))),
    withinMs ?? null,
  ]);
  return rows[0]?.ms ?? undefined;
}

/** $1: source, $2: topic, $3: [{"partition", "generation", "sequence"}], $4: milliseconds or null. */
const unreadStatement = `
with newest as materialized (
  select t.tick from turnout.relay_tick t where t.shard = 0 order by t.tick desc limit 1
), known as materialized (
  select r.partition, r.generation, r.sequence from jsonb_to_recordset($3::jsonb) as r (partition integer, generation integer, sequence bigint)
), generation as (
  -- Ticks of a generation keep nothing of the ones before, which may not be read to their end.
  select g as number, $1 || '/' || g as counted
    from turnout.source s
    cross join lateral generate_series(least(s.generation, coalesce((select min(k.generation) from known k), s.generation)), s.generation) g
   where s.name = $1
), published as materialized (
  select g.number as generation, g.counted, l.tick, c.place::integer - 1 as partition, c.count::bigint as count
    from generation g
    cross join lateral (
      select t.tick, t.numbers -> g.counted -> $2 as counts from turnout.relay_tick t, newest n
       where t.shard = 0 and t.tick > n.tick - 20000 and t.numbers ? g.counted order by t.tick desc limit 1) l
    cross join lateral jsonb_array_elements_text(l.counts) with ordinality as c (count, place)
), reading as (
  select p.*, coalesce(k.sequence, b.sequence, 0) as sequence
    from published p
    left join lateral (
      select case when r.generation > p.generation then p.count when r.generation = p.generation then r.sequence else 0 end as sequence
        from known r where r.partition = p.partition) k on true
    -- Never read: what had been published when the time began, as far back as is kept.
    left join lateral (
      select coalesce(
        (select coalesce((t.numbers -> p.counted -> $2 ->> p.partition)::bigint, 0) from turnout.relay_tick t, newest n
          where t.shard = 0 and t.tick > n.tick - 20000 and t.tick <= p.tick
            and t.at <= clock_timestamp() - $4::float8 * interval '1 ms' order by t.tick desc limit 1),
        (select coalesce((t.numbers -> p.counted -> $2 ->> p.partition)::bigint, 0) from turnout.relay_tick t, newest n
          where t.shard = 0 and t.tick > n.tick - 20000 order by t.tick limit 1)) as sequence
       where k.sequence is null and $4::float8 is not null) b on true
)
select case when not exists (select from published) then case when exists (select from known) and exists (select from newest) then 0::float8 end
       else (
         select coalesce(max(extract(epoch from clock_timestamp() - behind.at) * 1000), 0)::float8
           from reading r
           cross join newest n
           -- The newest tick that began with no more than was read: the next event was published in it.
           cross join lateral (
             select coalesce(
               (select t.at from turnout.relay_tick t
                 where t.shard = 0 and t.tick > n.tick - 20000 and t.tick <= r.tick
                   and coalesce((t.numbers -> r.counted -> $2 ->> r.partition)::bigint, 0) <= r.sequence
                 order by t.tick desc limit 1),
               (select min(t.at) from turnout.relay_tick t where t.shard = 0 and t.tick > n.tick - 20000)) as at) behind
          where r.count > r.sequence) end as ms`;

/**
 * Asks for evidence, and waits for it no longer than `timeoutMs`: it may come over HTTP, from a service that hangs. Evidence that counts
 * something else than was asked for is none: it comes from a service that does not pass the question on.
 */
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
    if (evidence === undefined) return { error: `it did not come within ${timeoutMs} ms` };
    if (answers(evidence, question)) return { evidence };
    return {
      error: 'it counts what was not asked for: pass the whole question on to consumerEvidence (docs/checks.md)',
    };
  } catch (error) {
    return { error: error instanceof Error ? error.message : String(error) };
  } finally {
    enough.abort();
  }
}
