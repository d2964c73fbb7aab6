// What changes a stage, and what brings its backlog back.
import type { Queryable } from '../../database/index.ts';
import { codeOfSqlState, errorKinds, TurnoutError } from '../../errors/index.ts';
import type { ErrorCode } from '../../errors/index.ts';
import type { ConsumedSequence } from '../checks/evidence.ts';
import type { Stage } from '../stage.ts';
import { rowsOf } from './store-rows.ts';

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
