import type { Queryable } from '../database/index.ts';
import { codeOfSqlState, errorKinds, fromDatabaseError, TurnoutError } from '../errors/index.ts';
import type { ErrorCode } from '../errors/index.ts';
import type { Ordering } from '../event/index.ts';
import { sleep } from '../lifecycle/index.ts';
import type { SwitchoverDefinition } from './define-switchover.ts';
import type { CheckVerdict, Finding } from './findings.ts';
import type { ConsumedSequence } from './evidence.ts';
import type { Stage } from './stage.ts';

/**
 * Creates a switchover in stage `rpc`, or adds to it the event types that it does not have yet; none is ever taken away.
 * Gives whether it was created. Throws TURNOUT_SWITCHOVER_INVALID, TURNOUT_EVENT_TYPE_UNREGISTERED.
 *
 * @example
 * await registerSwitchover(database, 'orders', confirmation, 'first step');
 */
export async function registerSwitchover(
  database: Queryable,
  source: string,
  definition: Pick<SwitchoverDefinition, 'name' | 'consumer' | 'order' | 'eventTypes'> &
    Partial<Pick<SwitchoverDefinition, 'endpoint'>>,
  reason: string,
): Promise<boolean> {
  const [row] = await rowsOf<{ created: boolean }>(
    database,
    'select turnout.register_switchover($1, $2, $3, $4::text[], $5, $6, $7) as created',
    [
      source,
      definition.name,
      definition.consumer,
      definition.eventTypes,
      definition.order,
      reason,
      definition.endpoint ?? null,
    ],
  );
  return row!.created;
}

/**
 * Whether all transactions that were open when the switchover was created are over: later ones know it. Until then,
 * what the consumer's group has committed may not be recorded as its start.
 */
export async function createdXidFinished(database: Queryable, source: string, name: string): Promise<boolean> {
  const [row] = await rowsOf<{ finished: boolean }>(
    database,
    `select pg_snapshot_xmin(pg_current_snapshot()) > s.created_xid as finished
       from turnout.switchover s where s.source = $1 and s.name = $2`,
    [source, name],
  );
  if (row === undefined) throw unknownSwitchover(source, name);
  return row.finished;
}

/** Where a consumer started: for each topic the offsets of its partitions, from partition 0 on. */
export type Since = Readonly<Record<string, readonly bigint[]>>;

/** What a switchover's row says; undefined if there is no row. Looks at nothing else, so that it is quick. */
export async function switchoverStart(
  database: Queryable,
  source: string,
  name: string,
): Promise<SwitchoverStart | undefined> {
  const [row] = await rowsOf<Omit<SwitchoverStart, 'since'> & { since: string | null }>(
    database,
    `select s.consumer, s.since::text as since, s.stage, s.percent::float8 as percent, s.epoch::float8 as epoch, s.endpoint, s.ordering as "order"
       from turnout.switchover s where s.source = $1 and s.name = $2`,
    [source, name],
  );
  if (row === undefined) return undefined;
  return { ...row, since: row.since === null ? undefined : parseSince(row.since) };
}

export interface SwitchoverStart {
  readonly consumer: string;
  readonly since: Since | undefined;
  readonly stage: Stage;
  readonly percent: number;
  readonly epoch: number;
  readonly endpoint: 'wrapped' | 'bridged';
  readonly order: Ordering;
}

/** The names of a source's switchovers. */
export async function switchoverNames(database: Queryable, source: string): Promise<string[]> {
  const rows = await rowsOf<{ name: string }>(
    database,
    'select s.name from turnout.switchover s where s.source = $1 order by s.name',
    [source],
  );
  return rows.map(({ name }) => name);
}

/** Resolves when all transactions that are open now are over, with true; or with false when `patienceMs` have passed. */
export async function openTransactionsOver(database: Queryable, patienceMs: number): Promise<boolean> {
  const [now] = await rowsOf<{ next: string }>(
    database,
    'select pg_snapshot_xmax(pg_current_snapshot())::text as next',
    [],
  );
  const deadline = performance.now() + patienceMs;
  for (;;) {
    const [row] = await rowsOf<{ over: boolean }>(
      database,
      'select pg_snapshot_xmin(pg_current_snapshot()) >= $1::xid8 as over',
      [now!.next],
    );
    if (row!.over) return true;
    if (performance.now() > deadline) return false;
    await sleep(20);
  }
}

/** Records where the consumer started; the first record stands. */
export async function recordSince(database: Queryable, source: string, name: string, since: Since): Promise<void> {
  await rowsOf(database, 'select turnout.record_since($1, $2, $3::jsonb)', [
    source,
    name,
    JSON.stringify(since, (_, offset: unknown) => (typeof offset === 'bigint' ? offset.toString() : offset)),
  ]);
}

/** One thing that stands against a stage change; in `details.problems` of the error that refuses it. */
export interface ProblemDetails {
  readonly code: ErrorCode | undefined;
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

/**
 * Changes the stage with the next transaction, and gives the new epoch, or the one there is if nothing changes. `percent` goes
 * with `ramp`; a higher one only adds keys. What must be there is in docs/switchover.md. If several things stand against the
 * change, the error is that of the first, and `details.problems` has all. Throws TURNOUT_STAGE_UNKNOWN, TURNOUT_STAGE_FINAL,
 * TURNOUT_STAGE_ORDER, TURNOUT_STAGE_UNAVAILABLE, TURNOUT_REASON_MISSING, TURNOUT_PERCENT_INVALID, TURNOUT_SWITCHOVER_UNKNOWN,
 * TURNOUT_SINCE_MISSING, TURNOUT_CALLS_OWED, TURNOUT_CALLS_OPEN; and, unless forced, TURNOUT_UNDECLARED_PUBLISHERS,
 * TURNOUT_CHECKS_MISSING, TURNOUT_CHECKS_NOT_READY. With `expectedEpoch`, TURNOUT_STAGE_CHANGED if the stage was changed since.
 *
 * @example
 * await setStage(database, 'orders', 'order-confirmation', 'ramp', { percent: 5, reason: 'a week without a difference' });
 */
export async function setStage(
  database: Queryable,
  source: string,
  name: string,
  // Any text: what it may be is decided in SQL, for all languages.
  stage: Stage | (string & {}),
  {
    reason,
    percent = 0,
    force = false,
    expectedEpoch,
  }: {
    readonly reason: string;
    readonly percent?: number;
    readonly force?: boolean;
    readonly expectedEpoch?: number;
  },
): Promise<number> {
  const [row] = await stageRows<{ epoch: string }>(
    database,
    'select turnout.set_stage($1, $2, $3, $4, $5::numeric, $6, $7::bigint)::text as epoch',
    [source, name, stage, reason, String(percent), force, expectedEpoch ?? null],
  );
  return Number(row!.epoch);
}

/**
 * What a guardrail does: goes back to an earlier stage, or in `ramp` to a lower percentage, with its grounds in `detail`; the
 * history says that nobody did it by hand. Gives the new epoch, or the one there is if the switchover is in that stage already.
 * Throws TURNOUT_STAGE_ORDER for a later stage, and as {@link setStage} does. `expectedEpoch` keeps it from overturning what
 * somebody has set since it was decided.
 */
export async function stepBack(
  database: Queryable,
  source: string,
  name: string,
  stage: Stage,
  {
    reason,
    detail,
    percent = 0,
    expectedEpoch,
  }: {
    readonly reason: string;
    readonly detail?: unknown;
    readonly percent?: number;
    readonly expectedEpoch?: number;
  },
): Promise<number> {
  const [row] = await stageRows<{ epoch: string }>(
    database,
    'select turnout.step_back($1, $2, $3, $4, $5::jsonb, $6::numeric, $7::bigint)::text as epoch',
    [
      source,
      name,
      stage,
      reason,
      detail === undefined ? null : JSON.stringify(detail),
      String(percent),
      expectedEpoch ?? null,
    ],
  );
  return Number(row!.epoch);
}

/**
 * Brings what was routed to events through the old endpoint: calls are owed for it from now on, and the sweeper makes them.
 * Gives for how many events. `consumed` says how far the consumer is, so that only what it may not have had is taken; without
 * it everything since the switchover last left `rpc`. `seqs` are further ones, such as those that the consumer holds. Its late
 * copies from Kafka are duplicates. May be repeated. Throws TURNOUT_STAGE_FINAL, TURNOUT_STAGE_UNAVAILABLE for a bridged endpoint.
 */
export async function redrive(
  database: Queryable,
  source: string,
  name: string,
  { consumed, seqs = [] }: { readonly consumed?: readonly ConsumedSequence[]; readonly seqs?: readonly string[] } = {},
): Promise<number> {
  const [row] = await rowsOf<{ redriven: string }>(
    database,
    'select turnout.redrive($1, $2, $3::jsonb, $4::bigint[])::text as redriven',
    [source, name, consumed === undefined ? null : JSON.stringify(consumed), seqs],
  );
  return Number(row!.redriven);
}

/** What somebody found who looked whether a switchover may go to a stage. */
export interface RecordedCheck {
  readonly stage: Stage;
  readonly verdict: CheckVerdict;
  readonly findings: readonly Finding[];
  /** The epoch that was looked at. Default: the one of now. */
  readonly epoch?: number;
}

/** Keeps a check: for ten minutes, and only in the epoch that was looked at, {@link setStage} goes by it. Throws TURNOUT_SWITCHOVER_UNKNOWN. */
export async function recordCheck(
  database: Queryable,
  source: string,
  name: string,
  { stage, verdict, findings, epoch }: RecordedCheck,
): Promise<void> {
  await rowsOf(database, 'select turnout.record_check($1, $2, $3, $4, $5::jsonb, $6::bigint)', [
    source,
    name,
    stage,
    verdict,
    JSON.stringify(findings),
    epoch ?? null,
  ]);
}

/** The newest check of a switchover, or the newest for one stage; undefined if there is none. `current`: of the epoch of now. */
export async function latestCheck(
  database: Queryable,
  source: string,
  name: string,
  stage?: Stage,
): Promise<(RecordedCheck & { readonly at: Date; readonly actor: string; readonly current: boolean }) | undefined> {
  const [row] = await rowsOf<{
    stage: Stage;
    verdict: CheckVerdict;
    findings: string;
    at: string;
    actor: string;
    current: boolean;
  }>(
    database,
    `select c.for_stage as stage, c.verdict, c.findings::text as findings, to_json(c.at) #>> '{}' as at, c.actor, c.epoch = s.epoch as current
       from turnout.switchover_check c
       join turnout.switchover s on s.source = c.source and s.name = c.switchover
      where c.source = $1 and c.switchover = $2 and ($3::text is null or c.for_stage = $3)
      order by c.id desc limit 1`,
    [source, name, stage ?? null],
  );
  if (row === undefined) return undefined;
  return { ...row, findings: JSON.parse(row.findings) as Finding[], at: new Date(row.at) };
}

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

function parseSince(text: string): Since {
  const texts = JSON.parse(text) as Record<string, string[]>;
  return Object.fromEntries(Object.entries(texts).map(([topic, offsets]) => [topic, offsets.map(BigInt)]));
}

function unknownSwitchover(source: string, name: string): TurnoutError {
  return new TurnoutError('TURNOUT_SWITCHOVER_UNKNOWN', `Switchover ${name} does not exist in source ${source}.`, {
    details: { switchover: name, source },
  });
}

/** As {@link rowsOf}; problems are told by their codes, not by SQLSTATEs. */
async function stageRows<Row>(database: Queryable, text: string, values: unknown[]): Promise<Row[]> {
  try {
    return await rowsOf<Row>(database, text, values);
  } catch (error) {
    const problems = error instanceof TurnoutError ? error.details['problems'] : undefined;
    if (!(error instanceof TurnoutError) || !Array.isArray(problems)) throw error;
    throw new TurnoutError(error.code, error.message.replace(` ${errorKinds[error.code].remedy}`, ''), {
      cause: error,
      details: { ...error.details, problems: (problems as StoredProblem[]).map(problemOf) },
    });
  }
}

interface StoredProblem extends Omit<ProblemDetails, 'code'> {
  readonly sqlState: string;
}

function problemOf({ sqlState, message, details }: StoredProblem): ProblemDetails {
  return { code: codeOfSqlState(sqlState), message, details };
}

async function rowsOf<Row>(database: Queryable, text: string, values: unknown[]): Promise<Row[]> {
  try {
    return (await database.query<Row>(text, values)).rows;
  } catch (error) {
    throw fromDatabaseError(error);
  }
}
