import { TurnoutError } from '../../errors/index.ts';
import { setStage, switchoverHistory, switchoverStatus } from '../../switchover/index.ts';
import type { Since } from '../../switchover/index.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import { loggerFor } from '../logger.ts';
import { table } from '../output.ts';
import type { Io, Report } from '../output.ts';
import { beginSwitchover } from './begin-switchover.ts';

interface SwitchRequest {
  readonly name: string;
  readonly stage: string;
  readonly reason: string | undefined;
  readonly force: boolean;
  readonly percent: number | undefined;
}

/** Sets a stage; for a switchover that does not exist yet, `rpc` creates it. */
export async function switchStage(loaded: TurnoutConfig, request: SwitchRequest, io: Io): Promise<Report> {
  const config = need(loaded, 'switch', 'source', 'database', 'switchovers');
  const { name, stage } = request;
  const definition = config.switchovers.find((each) => each.name === name);
  if (definition === undefined) {
    const known = config.switchovers.map((each) => each.name);
    throw new TurnoutError(
      'TURNOUT_SWITCHOVER_UNKNOWN',
      `The configuration has no switchover ${name} (it has: ${known.join(', ') || 'none'}).`,
      {
        details: { switchover: name, known },
      },
    );
  }
  if (stage === 'rpc') {
    const { broker } = need(loaded, 'switch', 'broker');
    const begun = await beginSwitchover({
      source: config.source,
      database: config.database,
      definition,
      broker: broker.source(),
      reason: request.reason ?? 'created',
      logger: loggerFor(io),
      patienceMs: 60_000,
    });
    if (begun.created) {
      return {
        data: { switchover: name, consumer: definition.consumer, stage, created: true, since: begun.since },
        text: `Switchover ${name} is created in stage rpc. Its consumer ${definition.consumer} starts at ${sinceText(begun.since)}.\nDeploy the code that declares it; from then on no call is lost.`,
      };
    }
  }
  const epoch = await setStage(config.database, config.source, name, stage, {
    reason: request.reason ?? '',
    force: request.force,
    ...(request.percent === undefined ? {} : { percent: request.percent }),
  });
  return {
    data: { switchover: name, consumer: definition.consumer, stage, created: false, epoch },
    text: `Switchover ${name} is in stage ${stage} (epoch ${epoch}) from the next transaction on.`,
  };
}

function sinceText(since: Since): string {
  return Object.entries(since)
    .map(([topic, offsets]) => `${topic} [${offsets.join(', ')}]`)
    .join(', ');
}

/** Stage of every switchover of the source. */
export async function showSwitchovers(loaded: TurnoutConfig): Promise<Report> {
  const { source, database } = need(loaded, 'switch status', 'source', 'database');
  const switchovers = await switchoverStatus(database, source);
  const text =
    switchovers.length === 0
      ? 'There is no switchover yet; `turnout switch <name> rpc` creates one.'
      : table(
          ['switchover', 'consumer', 'stage', 'epoch', 'order', 'calls owed', 'started'],
          switchovers.map((each) => [
            each.name,
            each.consumer,
            each.stage === 'ramp' ? `ramp ${each.percent} %` : each.stage,
            String(each.epoch),
            each.order,
            String(each.owedCalls),
            each.since === undefined ? 'no' : 'yes',
          ]),
        );
  return { data: { source, switchovers }, text };
}

/** Every stage change of one switchover, the oldest first. */
export async function showHistory(loaded: TurnoutConfig, name: string): Promise<Report> {
  const { source, database } = need(loaded, 'switch history', 'source', 'database');
  const changes = await switchoverHistory(database, source, name);
  const text = table(
    ['when', 'from', 'to', 'epoch', 'who', 'forced', 'reason'],
    changes.map((each) => [
      each.at.toISOString(),
      each.from ?? '',
      each.to,
      String(each.epoch),
      each.actor,
      each.forced ? 'forced' : '',
      each.reason,
    ]),
  );
  return { data: { source, switchover: name, changes }, text };
}
