import type { Command } from 'commander';
import { TurnoutError } from '../../errors/index.ts';
import type { Source } from '../../consumer/index.ts';
import {
  askForEvidence,
  isPromotion,
  isStage,
  openTransactionsOver,
  redrive,
  registerSwitchover,
  requireEndpoints,
  setStage,
  stages,
  switchoverNames,
  switchoverStart,
} from '../../switchover/index.ts';
import type { Since, Stage, SwitchoverDefinition, SwitchoverStart } from '../../switchover/index.ts';
import { consumerView } from '../consumer-view.ts';
import { knownText } from '../nearest.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { loggerFor } from '../logger.ts';
import type { Io, Report } from '../output.ts';
import { beginSwitchover } from './begin-switchover.ts';
import { checkConfigured } from './check.ts';
import { showHistory, showSwitchovers } from './switch-status.ts';

export function addSwitchCommands(program: Command, tools: CommandTools): void {
  const switching = tools
    .group(program, 'switch')
    .usage('<name> <stage> [options] | status | history <name>')
    .argument('<name>', 'name of a switchover of the configuration')
    .argument('<stage>', 'rpc, shadow, ramp, event or done; or register, which adds event types to the switchover')
    .description('set the stage of a switchover; from the next transaction on, events are given the new route')
    .option('-r, --reason <text>', 'why; the history keeps it (may be left out when the switchover is created)')
    .option('-f, --force', 'promote although checks or undeclared publishers speak against it; needs a reason')
    .option('-p, --percent <number>', 'share of keys for stage ramp, above 0 and up to 100', percentOf)
    .option('--redrive', 'with stage rpc: make calls at once for the events that the consumer may not have had yet')
    .addHelpText('after', help)
    .action(
      (
        name: string,
        stage: string,
        options: { reason?: string; force?: boolean; percent?: number; redrive?: boolean },
        command: Command,
      ) =>
        tools.withConfig(command, (config) =>
          switchStage(
            config,
            {
              name,
              stage,
              reason: options.reason,
              force: options.force === true,
              percent: options.percent,
              redrive: options.redrive === true,
            },
            tools.io,
          ),
        ),
    );
  switching
    .command('status')
    .description('stage, epoch, owed calls and newest check of every switchover')
    .action((_options: unknown, command: Command) => tools.withConfig(command, (config) => showSwitchovers(config)));
  switching
    .command('history')
    .argument('<name>', 'name of a switchover')
    .description('every stage change of a switchover: when, who, why, forced or automatic')
    .action((name: string, _options: unknown, command: Command) =>
      tools.withConfig(command, (config) => showHistory(config, name)),
    );
}

const percentOf = (text: string): number => Number(text.replace(/\s*%$/, ''));

const help = `
The first \`turnout switch <name> rpc\` creates the switchover: it waits until transactions that began before it are over and
records where its consumer starts. Run it before code that declares the switchover is deployed. Later it is the way back, and
one statement: it needs no broker, and no configuration that fits.
\`turnout switch <name> register\` adds the event types that the configuration's switchover has got since; run it before the
code that makes their calls through it is deployed. None is ever taken away.

  turnout switch order-confirmation rpc
  turnout switch order-confirmation shadow --reason "e-mail team is ready, see MAIL-12"
  turnout switch order-confirmation ramp --percent 5 --reason "no difference in a week"
  turnout switch order-confirmation event --reason "5 % for two days"
  turnout switch order-confirmation rpc --redrive --reason "template broken"
  turnout switch order-confirmation done --reason "the endpoint goes"`;

export interface SwitchRequest {
  readonly name: string;
  readonly stage: string;
  readonly reason: string | undefined;
  readonly force: boolean;
  readonly percent: number | undefined;
  /** With stage `rpc`: make calls for the events that the consumer may not have had yet. */
  readonly redrive?: boolean;
}

/**
 * Sets a stage. `rpc` creates a switchover that does not exist yet; for one that does it is a way back like any other: one
 * statement, that asks neither the broker nor what this configuration says of the switchover, which may be older or
 * newer than the code that runs; but for its endpoint, unless forced. `register` adds the event types that the configuration has and the row lacks.
 */
export async function switchStage(loaded: TurnoutConfig, request: SwitchRequest, io: Io): Promise<Report> {
  const { source, database } = need(loaded, 'switch', 'source', 'database');
  const { name, stage } = request;
  if (stage === 'register') return await registerTypes(loaded, request);
  if (!isStage(stage)) {
    throw new TurnoutError(
      'TURNOUT_STAGE_UNKNOWN',
      `There is no stage ${stage} (there are: ${knownText(stage, stages)}).`,
      {
        details: { stage, known: stages },
      },
    );
  }
  if (request.redrive === true && stage !== 'rpc') {
    throw new TurnoutError('TURNOUT_STAGE_ORDER', `\`--redrive\` goes with stage rpc, not with ${stage}.`, {
      details: { switchover: name, stage },
    });
  }
  const start = await switchoverStart(database, source, name);
  if (stage === 'rpc' && start?.since === undefined) return await begin(loaded, request, io);
  if (start === undefined) throw await unknownSwitchover(loaded, name);
  await requireSameEndpoint(loaded, request);
  const promotes = await prepare(loaded, request, start);
  const epoch = await setStage(database, source, name, stage, {
    reason: request.reason ?? '',
    force: request.force,
    // What was looked at. A way back goes on from wherever the switchover is.
    ...(promotes ? { expectedEpoch: start.epoch } : {}),
    ...(request.percent === undefined ? {} : { percent: request.percent }),
  });
  const changed = epoch !== start.epoch;
  const redriven = request.redrive === true ? await redriveBacklog(loaded, name, start) : undefined;
  const { consumer } = start;
  const place = stage === 'ramp' ? `ramp, ${request.percent ?? 0} %` : stage;
  return {
    data: {
      switchover: name,
      consumer,
      stage,
      created: false,
      changed,
      epoch,
      ...(stage === 'ramp' ? { percent: request.percent } : {}),
      ...redriven?.data,
    },
    text: [
      changed
        ? `Switchover ${name} is in stage ${place} (epoch ${epoch}) from the next transaction on.`
        : `Switchover ${name} is in stage ${place} (epoch ${epoch}) already; nothing was changed.`,
      ...(redriven === undefined ? [] : [redriven.text]),
    ].join('\n'),
  };
}

/** What is decided by the row must be what the code does. Forced, the way back waits for nothing, not even for that. */
async function requireSameEndpoint(loaded: TurnoutConfig, { name, stage, force }: SwitchRequest): Promise<void> {
  const { source, database, switchovers = [] } = need(loaded, 'switch', 'source', 'database');
  const definition = switchovers.find((each) => each.name === name);
  if (definition === undefined || (force && stage === 'rpc')) return;
  await requireEndpoints(database, source, [definition]);
}

/** What a promotion needs beside its statement: an offset for the consumer, and a check, which is kept in the database. Gives whether it is one. */
async function prepare(
  loaded: TurnoutConfig,
  { name, stage, percent, force }: SwitchRequest,
  start: SwitchoverStart,
): Promise<boolean> {
  const { broker } = loaded;
  const target = stage as Stage;
  const promotes =
    isPromotion(start.stage, target) || (target === 'ramp' && start.stage === 'ramp' && (percent ?? 0) > start.percent);
  const drains = target === 'rpc' && start.stage !== 'rpc' && start.endpoint === 'bridged' && start.order === 'key';
  if (start.stage === 'done' || !(promotes || drains)) return false;
  if ((target === 'ramp' || target === 'event') && start.since !== undefined && broker !== undefined)
    await needOffsets(broker.source(), start.consumer, start.since);
  if (!force) await checkConfigured(loaded, name, target);
  return promotes;
}

/**
 * The backlog goes through calls. Asked after the step back, which waits for nothing; and after the transactions that began before
 * it, whose events would not be found.
 */
async function redriveBacklog(loaded: TurnoutConfig, name: string, { consumer }: SwitchoverStart): Promise<Report> {
  const { source, database } = need(loaded, 'switch', 'source', 'database');
  const [over, { evidence, error }] = await Promise.all([
    openTransactionsOver(database, 5_000),
    askForEvidence(consumerView(loaded, consumer), {}),
  ]);
  // If not all that it holds is listed, everything is taken; what it has had are duplicates.
  const complete = evidence !== undefined && evidence.heldCount <= evidence.held.length;
  const redriven = await redrive(database, source, name, {
    ...(complete ? { consumed: evidence.consumed } : {}),
    seqs: (evidence?.held ?? []).flatMap((each) => (each.source === source && each.seq !== '' ? [each.seq] : [])),
  });
  const since = complete ? 'that the consumer may not have had' : 'since the switchover last left rpc';
  return {
    data: { redriven, evidence: complete, transactionsOver: over },
    text: [
      `Calls are owed for ${redriven} events ${since}; \`turnout run\` makes them.`,
      ...(error === undefined ? [] : [`What the consumer has had is not known: ${error}`]),
      ...(over
        ? []
        : ['Transactions from before the change are still open: run the same command again when they are over.']),
    ].join('\n'),
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
  if ((await switchoverStart(database, source, name)) === undefined) throw await unknownSwitchover(loaded, name);
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
    `The configuration has no switchover ${name} (it has: ${knownText(name, known)}).`,
    { details: { switchover: name, known } },
  );
}

/** Names those of the database and of the configuration. */
async function unknownSwitchover(loaded: TurnoutConfig, name: string): Promise<TurnoutError> {
  const { source, database, switchovers = [] } = need(loaded, 'switch', 'source', 'database');
  const created = await switchoverNames(database, source);
  const known = [...new Set([...created, ...switchovers.map((each) => each.name)])];
  return new TurnoutError(
    'TURNOUT_SWITCHOVER_UNKNOWN',
    `Switchover ${name} does not exist in source ${source} (known: ${knownText(name, known)}).`,
    { details: { switchover: name, source, known } },
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
