import type { Command } from 'commander';
import { together } from '../../lifecycle/index.ts';
import { createRelay, outboxKeeper } from '../../relay/index.ts';
import { guardrails, rpcSweeper } from '../../switchover/index.ts';
import { consumerView } from '../consumer-view.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { loggerFor } from '../logger.ts';
import { migrationsThere } from '../missing-migrations.ts';
import type { Io } from '../output.ts';
import { runService } from './run-service.ts';

export function addRunCommands(program: Command, tools: CommandTools): void {
  program
    .command('run')
    .description(
      'publish the outbox to Kafka, make again the calls that are owed, watch the guardrails of switchovers, make and empty outbox partitions; until SIGTERM',
    )
    .addHelpText('after', '\nRun it twice: one leads, the other stands by and takes over within seconds.')
    .action((_options: unknown, command: Command) => tools.withConfig(command, (config) => run(config, tools.io)));
}

/** Everything that a publishing service needs beside itself, as one process. */
export async function run(loaded: TurnoutConfig, io: Io): Promise<undefined> {
  const { source, database, broker, switchovers = [] } = need(loaded, 'run', 'source', 'database', 'broker');
  const logger = loggerFor(io);
  const service = together('turnout run', [
    migrationsThere({ name: source, database, sets: ['producer'] }),
    outboxKeeper({ database, logger }),
    createRelay({ database, publisher: broker.publisher(), logger }),
    ...(switchovers.length === 0
      ? []
      : [
          rpcSweeper({ source, database, switchovers, logger }),
          guardrails({
            source,
            database,
            switchovers,
            view: (consumer) => consumerView(loaded, consumer),
            onAlert: loaded.onAlert,
            logger,
          }),
        ]),
  ]);
  await runService(service, io);
}
