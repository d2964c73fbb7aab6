import type { Command } from 'commander';
import { TurnoutError } from '../../errors/index.ts';
import type { Source } from '../../consumer/index.ts';
import {
  registerSwitchover,
  setStage,
  switchoverHistory,
  switchoverStart,
  switchoverStatus,
} from '../../switchover/index.ts';
import type { Since, SwitchoverDefinition } from '../../switchover/index.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { loggerFor } from '../logger.ts';
import { table } from '../output.ts';
import type { Io, Report } from '../output.ts';
import { beginSwitchover } from './begin-switchover.ts';

export function addSwitchCommands(program: Command, tools: CommandTools): void {
  const switching = tools
    .group(program, 'switch')
    .usage('<name> <stage> [options] | status | history <name>')
    .argument('<name>', 'name of a switchover of the configuration')
    .argument('<stage>', 'rpc or event; or register, which adds event types to the switchover')
    .description('set the stage of a switchover; from the next transaction on, events are given the new route')
    .option('-r, --reason <text>', 'why; the history keeps it (may be left out when the switchover is created)')
    .option('-f, --force', 'promote without checks that say it is ready')
    .option('-p, --percent <number>', 'share of keys for stage ramp', Number)
    .addHelpText('after', help)
    .action(
      (
        name: string,
        stage: string,
        options: { reason?: string; force?: boolean; percent?: number },
        command: Command,
      ) =>
        tools.withConfig(command, (config) =>
          switchStage(
            config,
            { name, stage, reason: options.reason, force: options.force === true, percent: options.percent },
            tools.io,
          ),
        ),
    );
  switching
    .command('status')
    .description('stage, epoch and owed calls of every switchover')
    .action((_options: unknown, command: Command) => tools.withConfig(command, (config) => showSwitchovers(config)));
  switching
    .command('history')
    .argument('<name>', 'name of a switchover')
    .description('every stage change of a switchover: when, who, why')
    .action((name: string, _options: unknown, command: Command) =>
      tools.withConfig(command, (config) => showHistory(config, name)),
    );
}

const help = `
The first \`turnout switch <name> rpc\` creates the switchover: it waits until transactions that began before it are over and
records where its consumer starts. Run it before code that declares the switchover is deployed. Later it is the way back, and
one statement: it needs no broker, and no configuration that fits.
\`turnout switch <name> register\` adds the event types that the configuration's switchover has got since; run it before the
code that makes their calls through it is deployed. None is ever taken away.

  turnout switch order-confirmation rpc
  turnout switch order-confirmation event --force --reason "e-mail team is ready, see MAIL-12"
  turnout switch order-confirmation rpc --reason "template broken"`;

interface SwitchRequest {
  readonly name: string;
  readonly stage: string;
  readonly reason: string | undefined;
  readonly force: boolean;
  readonly percent: number | undefined;
}

/**
 * Sets a stage. `rpc` creates a switchover that does not exist yet; for one that does it is a way back like any other: one
 * statement, that asks neither the broker nor what this configuration says of the switchover, which may be older or
 * newer than the code that runs. `register` adds the event types that the configuration has and the row lacks.
 */
export async function switchStage(loaded: TurnoutConfig, request: SwitchRequest, io: Io): Promise<Report> {
  const { source, database, broker } = need(loaded, 'switch', 'source', 'database');
  const { name, stage } = request;
  if (stage === 'register') return await registerTypes(loaded, request);
  const start = await switchoverStart(database, source, name);
  if (stage === 'rpc' && start?.since === undefined) return await begin(loaded, request, io);
  const consumer = start?.consumer ?? definitionOf(loaded, name).consumer;
  if (stage === 'event' && start?.since !== undefined && broker !== undefined)
    await needOffsets(broker.source(), consumer, start.since);
  const epoch = await setStage(database, source, name, stage, {
    reason: request.reason ?? '',
    force: request.force,
    ...(request.percent === undefined ? {} : { percent: request.percent }),
  });
  return {
    data: { switchover: name, consumer, stage, created: false, epoch },
    text: `Switchover ${name} is in stage ${stage} (epoch ${epoch}) from the next transaction on.`,
  };
}

async function begin(loaded: TurnoutConfig, { name, reason }: SwitchRequest, io: Io): Promise<Report> {
  const { source, database } = need(loaded, 'switch', 'source', 'database');
  const definition = definitionOf(loaded, name);
  const { broker } = need(loaded, 'switch', 'broker');
  const since = await beginSwitchover({
    source,
    database,
    definition,
    broker: broker.source(),
    reason: reason ?? 'created',
    logger: loggerFor(io),
    patienceMs: 60_000,
  });
  return {
    data: { switchover: name, consumer: definition.consumer, stage: 'rpc', created: true, since },
    text: `Switchover ${name} is created in stage rpc. Its consumer ${definition.consumer} starts at ${sinceText(since)}.\nDeploy the code that declares it; from then on no call is lost.`,
  };
}

async function registerTypes(loaded: TurnoutConfig, { name, reason }: SwitchRequest): Promise<Report> {
  const { source, database } = need(loaded, 'switch', 'source', 'database');
  const definition = definitionOf(loaded, name);
  if ((await switchoverStart(database, source, name)) === undefined) {
    throw new TurnoutError('TURNOUT_SWITCHOVER_UNKNOWN', `Switchover ${name} does not exist in source ${source}.`, {
      details: { switchover: name, source },
    });
  }
  await registerSwitchover(database, source, definition, reason ?? '');
  const { consumer, eventTypes } = definition;
  return {
    data: { switchover: name, consumer, eventTypes },
    text: `Switchover ${name} has the event types ${eventTypes.join(', ')}. Deploy the code that calls for them.`,
  };
}

function definitionOf(loaded: TurnoutConfig, name: string): SwitchoverDefinition {
  const { switchovers } = need(loaded, 'switch', 'switchovers');
  const definition = switchovers.find((each) => each.name === name);
  if (definition !== undefined) return definition;
  const known = switchovers.map((each) => each.name);
  throw new TurnoutError(
    'TURNOUT_SWITCHOVER_UNKNOWN',
    `The configuration has no switchover ${name} (it has: ${known.join(', ') || 'none'}).`,
    { details: { switchover: name, known } },
  );
}

/**
 * A consumer that has not run yet starts where its group has committed. If the broker has forgotten that (it does, some days
 * after a group was last seen), it would start at `from`, and events that were routed to it before would be lost.
 */
async function needOffsets(broker: Source, consumer: string, since: Since): Promise<void> {
  for (const [topic, offsets] of Object.entries(since)) {
    const committed = await broker.committed(consumer, topic);
    const missing = offsets.map((_, partition) => partition).filter((partition) => !committed.has(partition));
    if (missing.length === 0) continue;
    throw new TurnoutError(
      'TURNOUT_CONSUMER_OFFSETS_MISSING',
      `The broker knows no offset of consumer ${consumer} for partition ${missing.join(', ')} of ${topic} (any more).`,
      { details: { consumer, topic, partitions: missing } },
    );
  }
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
