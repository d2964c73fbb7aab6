// What a consumer's database says of its switchover, as plain JSON, so that it can travel: checks, guardrails, a re-drive and
// `explain` read it. Rights of turnout_reader are enough. Each part is bounded: by a window of time, by a number of rows, or by the
// number of partitions; nothing here reads an inbox from end to end.
import type { Queryable } from '../../database/index.ts';
import { shadowReport } from '../shadow/report.ts';
import type { ShadowReport } from '../shadow/report.ts';

/** How far a consumer is in one partition, by the sequence of one source. Numbers that may be large are texts. */
export interface ConsumedSequence {
  readonly topic: string;
  readonly partition: number;
  readonly source: string;
  readonly generation: number;
  readonly sequence: string;
}

/** An event that waits in the consumer's database. */
export interface HeldEvidence {
  readonly eventId: string;
  readonly source: string;
  /** Its place in the outbox; empty if the message doesn't tell. */
  readonly seq: string;
  readonly reason: 'early' | 'parked' | 'behind';
}

/** Somebody who called an endpoint without Turnout's headers. */
export interface UnknownCaller {
  readonly endpoint: string;
  readonly service: string;
  readonly address: string;
  readonly calls: number;
  readonly firstAt: string;
  readonly lastAt: string;
  /** How long ago the last call was, by the consumer database's clock. */
  readonly ageMs: number;
}

/** An endpoint of the consumer, and when it was called last; undefined: not since it is wrapped. */
export interface EndpointSeen {
  readonly endpoint: string;
  /** When it told of a call first: of the time before, nothing is known. */
  readonly firstAt: string;
  readonly keyedAt?: string;
  readonly unkeyedAt?: string;
}

/** What a consumer's database says; made by {@link consumerEvidence}. */
export interface ConsumerEvidence {
  readonly consumer: string;
  /** By the clock of the consumer's database. */
  readonly at: string;
  /** What "within" means below: this many milliseconds up to `at`. */
  readonly withinMs: number;
  /** What was asked for: whose numbers those below are. Without event types: all of the consumer's. */
  readonly of: EvidenceScope;
  readonly consumed: readonly ConsumedSequence[];
  /** Where the consumer is to read next, and how long ago each partition last moved. */
  readonly positions: readonly {
    readonly topic: string;
    readonly partition: number;
    readonly next: string;
    readonly idleMs: number;
  }[];
  /** The oldest 10,000. */
  readonly held: readonly HeldEvidence[];
  /** Counted up to 100,000. */
  readonly heldCount: number;
  /** For how long the oldest event that is not parked has been held: early, or behind another; 0: there is none. */
  readonly waitingMs: number;
  /** Parked now; of these, those held within. */
  readonly parked: number;
  readonly parkedWithin: number;
  /** Outcomes within. */
  readonly dead: number;
  readonly skipped: number;
  /** Alarms that nobody has looked at; `within` of these are new. */
  readonly alarms: readonly {
    readonly kind: string;
    readonly count: number;
    readonly within: number;
    readonly newest: string;
  }[];
  /** Outcomes within, of each path counted up to {@link mostOutcomes}. */
  readonly outcomes: readonly {
    readonly path: 'rpc' | 'event';
    readonly outcome: string;
    readonly count: number;
    readonly newest: string;
  }[];
  readonly shadow?: ShadowReport;
  /** The newest 1,000. */
  readonly callers: readonly UnknownCaller[];
  readonly endpoints: readonly EndpointSeen[];
}

/** Of what is asked: of one switchover, or of all that the consumer does. Callers and endpoints are always the consumer's. */
export interface EvidenceScope {
  readonly source?: string;
  readonly topic?: string;
  /** Those of the switchover. */
  readonly eventTypes?: readonly string[];
}

/** What is asked for; plain JSON, to be passed on as it is. */
export interface EvidenceQuestion extends EvidenceScope {
  /** How far back outcomes, parked events and alarms are counted as new, in milliseconds. Default 3,600,000: an hour. */
  readonly withinMs?: number;
  /** Whether to give what stage shadow has found too (within, if that is said), which costs more. Default false. */
  readonly shadow?: boolean;
}

const anHourMs = 3_600_000;

/** More outcomes of a path are not counted: a share of them is not known then. */
export const mostOutcomes = 100_000;

/**
 * Reads what a consumer's database says of it. Reads only, with the rights of `turnout_reader`. Serve it over HTTP where the producing
 * team has no access to that database, to callers that are known to it (docs/checks.md), and name the function that fetches it in
 * `evidence` of the configuration. The question is passed on as it is.
 *
 * @example
 * const { outcomes } = await consumerEvidence(pgDatabase(pool), 'email', { source: 'shop', eventTypes: ['shop.order-placed'], withinMs: 60_000 });
 */
export async function consumerEvidence(
  database: Queryable,
  consumer: string,
  question: EvidenceQuestion = {},
): Promise<ConsumerEvidence> {
  const { withinMs = anHourMs, shadow = false, source, topic, eventTypes } = question;
  const { rows } = await database.query<{ evidence: string }>(evidenceStatement, [
    consumer,
    withinMs,
    source ?? null,
    topic ?? null,
    eventTypes ?? null,
    mostOutcomes,
  ]);
  const read = JSON.parse(rows[0]!.evidence) as Omit<ConsumerEvidence, 'skipped' | 'shadow' | 'withinMs' | 'of'>;
  const effects = (outcome: string): number =>
    read.outcomes.filter((each) => each.outcome === outcome).reduce((sum, each) => sum + each.count, 0);
  return {
    ...read,
    withinMs,
    skipped: effects('skipped'),
    of: scopeOf(question),
    ...(shadow ? { shadow: await shadowReport(database, consumer, question) } : {}),
  };
}

function scopeOf({ source, topic, eventTypes }: EvidenceScope): EvidenceScope {
  return {
    ...(source === undefined ? {} : { source }),
    ...(topic === undefined ? {} : { topic }),
    ...(eventTypes === undefined ? {} : { eventTypes }),
  };
}

/** Whether evidence counts what was asked for, and not more: a service that drops a part of the question proves nothing. */
export function answers(
  { of, withinMs }: Pick<ConsumerEvidence, 'withinMs'> & Partial<Pick<ConsumerEvidence, 'of'>>,
  asked: EvidenceQuestion,
): boolean {
  const text = ({ source, topic, eventTypes = [] }: EvidenceScope): string =>
    JSON.stringify([source ?? null, topic ?? null, eventTypes.toSorted()]);
  return text(of ?? {}) === text(asked) && (asked.withinMs === undefined || withinMs <= asked.withinMs);
}

/** A held event of the switchover; one of unknown type may be. */
const heldOf = (row: string): string =>
  `($3::text is null or ${row}.source = $3) and ($5::text[] is null or ${row}.event_type is null or ${row}.event_type = any ($5))`;

/** One statement, so that all of it is of one moment. $1: consumer, $2: milliseconds; or null: $3: source, $4: topic, $5: event types. $6: most outcomes. */
const evidenceStatement = `
with window_of as materialized (
  select statement_timestamp() - make_interval(secs => $2::float8 / 1000) as since
), held as materialized (
  select h.id, h.effect_key, h.source, h.reason,
         coalesce(case when h.message ? 'base64' then convert_from(decode(h.message ->> 'base64', 'base64'), 'UTF8')::jsonb
                       else h.message end #>> '{headers,turnout-seq}', '') as seq
    from turnout.held h where h.consumer = $1 and ${heldOf('h')} order by h.id limit 10000
)
select json_build_object(
  'consumer', $1::text,
  'at', statement_timestamp(),
  'consumed', (
    select coalesce(json_agg(json_build_object('topic', s.topic, 'partition', s.partition, 'source', s.source,
             'generation', s.generation, 'sequence', s.last::text) order by s.topic, s.partition, s.source), '[]')
      from turnout.consumed_sequence s where s.consumer = $1),
  'positions', (
    select coalesce(json_agg(json_build_object('topic', p.topic, 'partition', p.partition, 'next', p.next_offset::text,
             'idleMs', greatest(0, round(extract(epoch from statement_timestamp() - p.updated_at) * 1000)))
             order by p.topic, p.partition), '[]')
      from turnout.position p where p.consumer = $1),
  'held', (
    select coalesce(json_agg(json_build_object('eventId', substr(h.effect_key, length($1::text) + 2), 'source', h.source,
             'seq', h.seq, 'reason', h.reason) order by h.id), '[]') from held h),
  'heldCount', (select count(*) from (select from turnout.held h where h.consumer = $1 and ${heldOf('h')} limit 100000) h),
  'waitingMs', coalesce((
    select greatest(0, round(extract(epoch from statement_timestamp() - h.held_at) * 1000))
      from turnout.held h where h.consumer = $1 and h.reason <> 'parked' and ${heldOf('h')} order by h.held_at limit 1), 0),
  'parked', (
    select count(*) from (select from turnout.held h where h.consumer = $1 and h.reason = 'parked' and ${heldOf('h')} limit 100000) h),
  'parkedWithin', (
    select count(*) from (select from turnout.held h
      where h.consumer = $1 and h.reason = 'parked' and ${heldOf('h')} and h.held_at > (select w.since from window_of w) limit 100000) h),
  'dead', (
    select count(*) from (select from turnout.inbox i
      where i.consumer = $1 and i.outcome = 'dead' and ($3::text is null or i.source = $3)
        and ($5::text[] is null or i.event_type = any ($5)) and i.finished_at > (select w.since from window_of w) limit 100000) i),
  'alarms', (
    select coalesce(json_agg(json_build_object('kind', a.kind, 'count', a.alarms, 'within', a.within, 'newest', a.newest)
             order by a.kind), '[]')
      from (select a.kind, count(*) as alarms, count(*) filter (where a.at > (select w.since from window_of w)) as within,
                   max(a.at) as newest
              from turnout.alarm a
             where a.consumer = $1 and a.seen_at is null
               -- A hole has no event type: it may have been one of these.
               and ($3::text is null or coalesce(a.detail ->> 'source', $3) = $3)
               and ($4::text is null or coalesce(a.detail ->> 'topic', $4) = $4)
               and ($5::text[] is null or coalesce(a.detail ->> 'eventType', a.detail ->> 'type', $5[1]) = any ($5))
             group by a.kind) a),
  'outcomes', (
    select coalesce(json_agg(json_build_object('path', o.path, 'outcome', o.outcome, 'count', o.effects, 'newest', o.newest)
             order by o.path, o.outcome), '[]')
      from turnout.recent_outcomes($1, make_interval(secs => $2::float8 / 1000), $6, $3, $5) o),
  'callers', (
    select coalesce(json_agg(json_build_object('endpoint', u.endpoint, 'service', u.service, 'address', u.address,
             'calls', u.calls, 'firstAt', u.first_at, 'lastAt', u.last_at,
             'ageMs', greatest(0, round(extract(epoch from statement_timestamp() - u.last_at) * 1000)))
             order by u.last_at desc), '[]')
      from (select * from turnout.unknown_caller u where u.consumer = $1 order by u.last_at desc limit 1000) u),
  'endpoints', (
    select coalesce(json_agg(json_strip_nulls(json_build_object('endpoint', e.endpoint, 'firstAt', e.first_at,
             'keyedAt', e.keyed_at, 'unkeyedAt', e.unkeyed_at)) order by e.endpoint), '[]')
      from turnout.endpoint_seen e where e.consumer = $1)
)::text as evidence`;
