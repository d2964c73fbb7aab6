import { latestCheck, switchoverHistory, switchoverStatus } from '../../switchover/index.ts';
import type { StageChange } from '../../switchover/index.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import { stageText, table } from '../output.ts';
import type { Report } from '../output.ts';

/** Stage of every switchover of the source, and what was found when somebody last looked whether it may go on. */
export async function showSwitchovers(loaded: TurnoutConfig): Promise<Report> {
  const { source, database } = need(loaded, 'switch status', 'source', 'database');
  const switchovers = await Promise.all(
    (await switchoverStatus(database, source)).map(async (each) => ({
      ...each,
      check: await latestCheck(database, source, each.name),
    })),
  );
  const text =
    switchovers.length === 0
      ? 'There is no switchover yet; `turnout switch <name> rpc` creates one.'
      : table(
          ['switchover', 'consumer', 'stage', 'epoch', 'order', 'endpoint', 'calls owed', 'started', 'last check'],
          switchovers.map((each) => [
            each.name,
            each.consumer,
            stageText(each),
            String(each.epoch),
            each.order,
            each.endpoint,
            each.failedCalls === 0 ? String(each.owedCalls) : `${each.owedCalls} (${each.failedCalls} failing)`,
            each.since === undefined ? 'no' : 'yes',
            each.check === undefined
              ? 'none'
              : `${each.check.verdict} for ${each.check.stage}, ${each.check.at.toISOString()}${each.check.current ? '' : ', before the last stage change'}`,
          ]),
        );
  return { data: { source, switchovers }, text };
}

/** Every stage change of one switchover, the oldest first. */
export async function showHistory(loaded: TurnoutConfig, name: string): Promise<Report> {
  const { source, database } = need(loaded, 'switch history', 'source', 'database');
  const changes = await switchoverHistory(database, source, name);
  const text = table(
    ['when', 'from', 'to', 'epoch', 'who', 'how', 'reason'],
    changes.map((each) => [
      each.at.toISOString(),
      each.from ?? '',
      stageText({ stage: each.to, percent: each.percent }),
      String(each.epoch),
      each.actor,
      howOf(each),
      each.reason,
    ]),
  );
  return { data: { source, switchover: name, changes }, text };
}

function howOf({ automatic, forced }: StageChange): string {
  if (automatic) return 'automatic';
  return forced ? 'forced' : '';
}
