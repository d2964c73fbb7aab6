// What was found by those who looked whether a switchover may go on.
import type { Queryable } from '../../database/index.ts';
import type { CheckVerdict, Finding } from '../checks/findings.ts';
import type { Stage } from '../stage.ts';
import { rowsOf } from './store-rows.ts';

/** What somebody found who looked whether a switchover may go to a stage. */
export interface RecordedCheck {
  readonly stage: Stage;
  readonly verdict: CheckVerdict;
  readonly findings: readonly Finding[];
  /** The epoch that was looked at. Default: the one of now. */
  readonly epoch?: number;
}

/** Keeps a check: for ten minutes, and only in the epoch that was looked at, `setStage` goes by it. Throws TURNOUT_SWITCHOVER_UNKNOWN. */
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
