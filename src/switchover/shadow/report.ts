import type { Queryable } from '../../database/index.ts';

/** What stage shadow has found for a consumer; plain JSON. */
export interface ShadowReport {
  readonly consumer: string;
  /** What is counted: from when on, and why from then. */
  readonly since: string | null;
  readonly sinceWhy: 'asked' | 'stage' | 'release' | 'kept';
  readonly deliveries: {
    /** Calls that had their effect. */
    readonly expected: number;
    /** Of these, those whose event came. */
    readonly arrived: number;
    /** Those whose event has not come, though the promised delay has passed. */
    readonly missing: number;
    /** Those whose event may come yet. */
    readonly waiting: number;
    /** Of those that arrived, how many took longer than promised. */
    readonly late: number;
    /** Events that came and could not have had their effect; `problems` says why. */
    readonly undecodable: number;
    readonly problems: readonly { readonly problem: string; readonly count: number }[];
    readonly outOfOrder: number;
    /** From the time of the event, by the producer's clock, to its arrival, by the consumer's. */
    readonly delayMs: { readonly p50: number | null; readonly p99: number | null };
  };
  readonly decisions: {
    /** matched + mismatched + waived. */
    readonly compared: number;
    readonly matched: number;
    readonly mismatched: number;
    readonly waived: number;
    /** Comparisons that failed themselves: too slow, too large, in the way of others. */
    readonly failed: number;
    /** Calls of the sample that were not compared: too many at once, or without the event. */
    readonly skipped: number;
  };
  readonly variants: readonly { readonly variant: string; readonly compared: number; readonly expected: boolean }[];
  /** The largest first, at most 100. */
  readonly groups: readonly ShadowGroup[];
}

/** Mismatches of one kind at the same places. */
export interface ShadowGroup {
  readonly fingerprint: string;
  readonly kind: 'writes' | 'answer' | 'effects' | 'error' | 'several';
  readonly eventType: string;
  readonly paths: readonly string[];
  readonly count: number;
  readonly firstAt: string;
  readonly lastAt: string;
  /** The newest, masked. Expected: what the call did; actual: what the event handler would have done. */
  readonly example: { readonly effectKey: string; readonly expected: unknown; readonly actual: unknown } | null;
  /** Counts as waived until then. */
  readonly waivedUntil?: string;
}

export interface ShadowReportOptions {
  /** Default: since the newest release was first seen, or the stage became shadow, whichever is later. */
  readonly since?: Date;
  /** The same as a length of time up to now, by the clock of the consumer's database: how long the stage is set. */
  readonly withinMs?: number;
  /** How long an event may take to arrive, in milliseconds. Default 60,000. */
  readonly promisedDelayMs?: number;
  /** Counts what is of this source only. */
  readonly source?: string;
  /** Counts what is of these event types only: those of one switchover. Default: all, each from its own newest stage change on. */
  readonly eventTypes?: readonly string[];
}

/**
 * Reads what stage shadow has found, with the rights of `turnout_reader`; a replica that lags behind will do. Comparisons are
 * counted by the minute, so those of the minute in which `since` lies count; of the minute of a deploy, only the new release's.
 *
 * @example
 * const { decisions, groups } = await shadowReport(pgDatabase(pool), 'email');
 */
export async function shadowReport(
  database: Queryable,
  consumer: string,
  { since, withinMs, promisedDelayMs = 60_000, source, eventTypes }: ShadowReportOptions = {},
): Promise<ShadowReport> {
  const { rows } = await database.query<{ report: string }>(reportStatement, [
    consumer,
    since?.toISOString() ?? null,
    promisedDelayMs,
    source ?? null,
    eventTypes ?? null,
    withinMs ?? null,
  ]);
  const report = JSON.parse(rows[0]!.report) as ShadowReport;
  return {
    ...report,
    since: report.since === null ? null : inUtc(report.since),
    groups: report.groups.map((group) => ({
      ...group,
      firstAt: inUtc(group.firstAt),
      lastAt: inUtc(group.lastAt),
      ...(group.waivedUntil === undefined ? {} : { waivedUntil: inUtc(group.waivedUntil) }),
    })),
  };
}

/** As the session's time zone has it → UTC; `infinity` stays. */
function inUtc(text: string): string {
  const at = new Date(text);
  return Number.isNaN(at.getTime()) ? text : at.toISOString();
}

/**
 * One statement, so that all of it is of one moment. $1: consumer, $2: since or null, $3: promised delay in milliseconds, $4: source
 * or null, $5: event types or null, $6: milliseconds since the stage was set, or null.
 */
const reportStatement = `
with arrived as not materialized (
  select a.* from turnout.shadow_arrival a
   where a.consumer = $1 and ($4::text is null or a.source = $4) and ($5::text[] is null or a.event_type = any ($5))
), newest_epoch as (
  -- Each switchover counts its own epochs: they are compared within the event types of one, or else within one event type.
  select a.source, case when $5::text[] is null then a.event_type end as event_type, max(a.epoch) as epoch from arrived a group by 1, 2
), stage as (
  -- When the stage became shadow: as it is told, or when the first event of the newest epoch came. Without event type: for all.
  select n.event_type, min(a.occurred_at) as at
    from newest_epoch n
    join arrived a on a.source = n.source and a.epoch = n.epoch and (n.event_type is null or a.event_type = n.event_type)
   where $2::timestamptz is null and $6::float8 is null
   group by n.event_type
  union all
  select null, statement_timestamp() - $6::float8 * interval '1 ms' where $2::timestamptz is null and $6::float8 is not null
), starts as (
  select (select min(s.at) from stage s) as stage, n.release as newest, n.minute as release
    from (select) as one
    -- Of the whole service, whichever events it has compared since. Two that were first seen in one minute: the one that was seen
    -- last, then the later name.
    left join lateral (select d.release, min(d.minute) as minute from turnout.shadow_count d where d.consumer = $1 and d.release <> ''
                        group by d.release order by min(d.minute) desc, max(d.minute) desc, d.release desc limit 1) n on true
), window_of as materialized (
  select coalesce($2::timestamptz, greatest(stage, release)) as since,
         coalesce($2::timestamptz, release, '-infinity') as start,
         case when $2::timestamptz is not null then 'asked'
              when release is not null and release >= coalesce(stage, release) then 'release'
              when $6::float8 is not null then 'asked'
              when stage is not null then 'stage' else 'kept' end as why,
         case when $2::timestamptz is null then newest end as newest, release as newest_minute
    from starts
), arrival as materialized (
  select a.problem, a.sample,
         -- Below one of its key that came before it.
         a.place is not null and (coalesce(a.generation, 0), a.place) < lag((coalesce(a.generation, 0), a.place)) over by_key as out_of_order
    from arrived a, window_of w
   where a.arrived_at >= greatest(w.start, (select s.at from stage s where s.event_type is null or s.event_type = a.event_type))
  window by_key as (partition by a.source, a.topic, a.partition, a.key, a.place is null order by a."offset")
), called as (
  select c.effect_key, c.called_at
    from turnout.shadow_call c, window_of w
   where c.consumer = $1 and ($5::text[] is null or c.event_type = any ($5))
     and c.called_at >= greatest(w.start, (select s.at from stage s where s.event_type is null or s.event_type = c.event_type))
     and c.bucket < (select coalesce(min(a.sample), 10000) from arrival a)
), delivery as (
  select c.called_at, a.arrived_at, case when a.arrived_at is not null then greatest(0, extract(epoch from a.arrived_at - a.occurred_at) * 1000) end as delay
    from called c left join turnout.shadow_arrival a on a.consumer = $1 and a.effect_key = c.effect_key
), waived as (
  select w.fingerprint, w.until from turnout.shadow_waiver w where w.consumer = $1 and w.until > clock_timestamp()
), counted as (
  select coalesce(sum(n.matched), 0)::bigint as matched, coalesce(sum(n.mismatched), 0)::bigint as mismatched,
         coalesce(sum(n.failed), 0)::bigint as failed, coalesce(sum(n.skipped), 0)::bigint as skipped
    from turnout.shadow_count n, window_of w
   where n.consumer = $1 and ($5::text[] is null or n.event_type = any ($5))
     and n.minute > greatest(w.start, (select s.at from stage s where s.event_type is null or s.event_type = n.event_type)) - interval '1 minute'
     -- In the minute of a deploy both have run: what the old release did then says nothing about the new one.
     and (w.newest is null or n.release = w.newest or n.minute <> w.newest_minute)
), mismatch as (
  select m.fingerprint, min(m.kind) as kind, min(m.event_type) as event_type, (array_agg(m.paths order by m.minute desc))[1] as paths,
         sum(m.count)::bigint as count, min(m.first_at) as first_at, max(m.last_at) as last_at
    from turnout.shadow_mismatch m, window_of w
   where m.consumer = $1 and ($5::text[] is null or m.event_type = any ($5))
     and m.minute > greatest(w.start, (select s.at from stage s where s.event_type is null or s.event_type = m.event_type)) - interval '1 minute'
     and (w.newest is null or m.release = w.newest or m.minute <> w.newest_minute)
   group by m.fingerprint
), forgiven as (
  select coalesce(sum(m.count), 0)::bigint as count from mismatch m join waived using (fingerprint)
)
select json_build_object(
  'consumer', $1::text,
  'since', (select since from window_of),
  'sinceWhy', (select why from window_of),
  'deliveries', (
    select json_build_object(
      'expected', count(*),
      'arrived', count(arrived_at),
      'missing', count(*) filter (where arrived_at is null and called_at < clock_timestamp() - $3::float8 * interval '1 ms'),
      'waiting', count(*) filter (where arrived_at is null and called_at >= clock_timestamp() - $3::float8 * interval '1 ms'),
      'late', count(*) filter (where delay > $3::float8),
      'undecodable', (select count(*) from arrival where problem is not null),
      'problems', (select coalesce(json_agg(json_build_object('problem', problem, 'count', count) order by count desc), '[]')
                     from (select problem, count(*) from arrival where problem is not null group by problem order by 2 desc limit 20) p),
      'outOfOrder', (select count(*) from arrival where out_of_order),
      'delayMs', json_build_object('p50', round(percentile_cont(0.5) within group (order by delay)::numeric),
                                   'p99', round(percentile_cont(0.99) within group (order by delay)::numeric)))
    from delivery),
  'decisions', (
    select json_build_object('compared', c.matched + c.mismatched, 'matched', c.matched, 'mismatched', greatest(0, c.mismatched - f.count),
                             'waived', least(c.mismatched, f.count), 'failed', c.failed, 'skipped', c.skipped)
      from counted c, forgiven f),
  'variants', (
    select coalesce(json_agg(json_build_object('variant', v.variant, 'compared', v.compared, 'expected', v.expected) order by v.variant), '[]')
      from (select coalesce(n.variant, e.variant) as variant, coalesce(n.compared, 0) as compared, e.variant is not null as expected
              from (select n.variant, sum(n.matched + n.mismatched)::bigint as compared
                      from turnout.shadow_count n, window_of w
                     where n.consumer = $1 and n.variant <> '' and ($5::text[] is null or n.event_type = any ($5))
                       and n.minute > greatest(w.start, (select s.at from stage s where s.event_type is null or s.event_type = n.event_type)) - interval '1 minute'
                       and (w.newest is null or n.release = w.newest or n.minute <> w.newest_minute) group by n.variant) n
              full join (
                select x.variant from turnout.shadow_variant x
                 where x.consumer = $1
                   -- Handlers declare variants for all their events: one that only other event types have is none of these.
                   and ($5::text[] is null
                        or exists (select from turnout.shadow_count o where o.consumer = $1 and o.variant = x.variant and o.event_type = any ($5))
                        or not exists (select from turnout.shadow_count o where o.consumer = $1 and o.variant = x.variant))) e
                on e.variant = n.variant) v),
  'groups', (
    select coalesce(json_agg(json_strip_nulls(json_build_object('fingerprint', m.fingerprint, 'kind', m.kind, 'eventType', m.event_type,
                             'paths', m.paths, 'count', m.count, 'firstAt', m.first_at, 'lastAt', m.last_at, 'waivedUntil', w.until))::jsonb
                             || jsonb_build_object('example', e.example)
                             order by m.count desc, m.fingerprint), '[]')
      from (select * from mismatch order by count desc, fingerprint limit 100) m
      left join waived w using (fingerprint)
      left join lateral (
        select jsonb_build_object('effectKey', x.effect_key, 'expected', x.expected, 'actual', x.actual) as example
          from turnout.shadow_example x
         where x.consumer = $1 and x.fingerprint = m.fingerprint order by x.id desc limit 1) e on true)
)::text as report`;
