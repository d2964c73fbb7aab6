// What is known of a switchover, from the three places that know it: the producer's database, the broker, the consumer's database.
import type { Source } from '../../consumer/index.ts';
import type { Queryable } from '../../database/index.ts';
import type { Ordering } from '../../event/index.ts';
import { sleep } from '../../lifecycle/index.ts';
import type { CheckFacts } from './checks.ts';
import { answers } from './evidence.ts';
import type { ConsumerEvidence, EvidenceQuestion, EvidenceScope } from './evidence.ts';
import type { Stage } from '../stage.ts';
import { unknownSwitchover } from '../stages/store-rows.ts';

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
  throw unknownSwitchover(source, name);
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
