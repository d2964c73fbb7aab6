// How switchovers stand, and how they came to it.
import type { Queryable } from '../../database/index.ts';
import type { Ordering } from '../../event/index.ts';
import type { Stage } from '../stage.ts';
import { parseSince } from './start-store.ts';
import type { Since } from './start-store.ts';
import { rowsOf, unknownSwitchover } from './store-rows.ts';

export interface SwitchoverStatus {
  readonly name: string;
  readonly consumer: string;
  readonly topic: string;
  readonly eventTypes: readonly string[];
  readonly order: Ordering;
  readonly stage: Stage;
  readonly percent: number;
  readonly endpoint: 'wrapped' | 'bridged';
  readonly epoch: number;
  readonly generation: number;
  /** Undefined until the consumer's start is recorded; without it nothing may be routed to events. */
  readonly since: Since | undefined;
  readonly createdAt: Date;
  /** Calls that have no outcome yet. */
  readonly owedCalls: number;
  /** Of these, the ones that have failed at least once. */
  readonly failedCalls: number;
  /** What the last failed call said. */
  readonly lastError: string | undefined;
  /** Events of the last five minutes whose publisher did not declare the switchover. */
  readonly undeclaredEvents: number;
}

interface StatusRow {
  name: string;
  consumer: string;
  topic: string;
  event_types: string[];
  ordering: Ordering;
  stage: Stage;
  percent: string;
  endpoint: 'wrapped' | 'bridged';
  epoch: string;
  generation: number;
  since: string | null;
  created_at: string;
  owed: string;
  failed: string;
  last_error: string | null;
  undeclared: string;
}

/** The switchovers of a source, or the one named. Throws TURNOUT_SWITCHOVER_UNKNOWN if the one named does not exist. */
export async function switchoverStatus(
  database: Queryable,
  source: string,
  name?: string,
): Promise<SwitchoverStatus[]> {
  const rows = await rowsOf<StatusRow>(
    database,
    `select s.name, s.consumer, s.topic, to_jsonb(s.event_types) as event_types, s.ordering, s.stage, s.percent::text as percent,
            s.endpoint, s.epoch::text as epoch, s.generation, s.since::text as since, to_json(s.created_at) #>> '{}' as created_at,
            d.owed::text as owed, d.failed::text as failed, d.last_error, u.events::text as undeclared
       from turnout.switchover s
       cross join lateral (
         select count(*) as owed, count(*) filter (where d.last_error is not null) as failed,
                (array_agg(d.last_error order by d.due_at desc) filter (where d.last_error is not null))[1] as last_error
         from turnout.rpc_delivery d where d.source = s.source and d.switchover = s.name) d
       cross join lateral turnout.undeclared_publishers(s.source, s.name) u
      where s.source = $1 and ($2::text is null or s.name = $2)
      order by s.name`,
    [source, name ?? null],
  );
  if (name !== undefined && rows.length === 0) throw unknownSwitchover(source, name);
  return rows.map((row) => ({
    name: row.name,
    consumer: row.consumer,
    topic: row.topic,
    eventTypes: row.event_types,
    order: row.ordering,
    stage: row.stage,
    percent: Number(row.percent),
    endpoint: row.endpoint,
    epoch: Number(row.epoch),
    generation: row.generation,
    since: row.since === null ? undefined : parseSince(row.since),
    createdAt: new Date(row.created_at),
    owedCalls: Number(row.owed),
    failedCalls: Number(row.failed),
    lastError: row.last_error ?? undefined,
    undeclaredEvents: Number(row.undeclared),
  }));
}

export interface StageChange {
  readonly epoch: number;
  /** Undefined for the creation. */
  readonly from: Stage | undefined;
  readonly to: Stage;
  readonly percent: number;
  readonly reason: string;
  /** Whether something that stood against it was overridden; `detail` says what. */
  readonly forced: boolean;
  /** Whether a guardrail made it. */
  readonly automatic: boolean;
  /** What was overridden; a guardrail's grounds; how many calls a re-drive owes. */
  readonly detail: Readonly<Record<string, unknown>> | undefined;
  /** The database role that made the change. */
  readonly actor: string;
  readonly at: Date;
}

/** Every stage change of a switchover, the oldest first. Throws TURNOUT_SWITCHOVER_UNKNOWN. */
export async function switchoverHistory(database: Queryable, source: string, name: string): Promise<StageChange[]> {
  const rows = await rowsOf<{
    epoch: string;
    from_stage: Stage | null;
    to_stage: Stage;
    percent: string;
    reason: string;
    forced: boolean;
    automatic: boolean;
    detail: string | null;
    actor: string;
    at: string;
  }>(
    database,
    `select h.epoch::text as epoch, h.from_stage, h.to_stage, h.percent::text as percent, h.reason, h.forced, h.automatic,
            h.detail::text as detail, h.actor,
            to_json(h.at) #>> '{}' as at
       from turnout.switchover_history h
      where h.source = $1 and h.switchover = $2
      order by h.id`,
    [source, name],
  );
  if (rows.length === 0) throw unknownSwitchover(source, name);
  return rows.map((row) => ({
    epoch: Number(row.epoch),
    from: row.from_stage ?? undefined,
    to: row.to_stage,
    percent: Number(row.percent),
    reason: row.reason,
    forced: row.forced,
    automatic: row.automatic,
    detail: row.detail === null ? undefined : (JSON.parse(row.detail) as Record<string, unknown>),
    actor: row.actor,
    at: new Date(row.at),
  }));
}
