import type { Command } from 'commander';
import { runConsumer } from '../../consumer/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { loggerFor } from '../logger.ts';
import type { Io } from '../output.ts';
import { runService } from './run-service.ts';

export function addConsumeCommands(program: Command, tools: CommandTools): void {
  program
    .command('consume')
    .argument('<consumer>', 'name of a consumer of the configuration')
    .description('run one consumer until SIGTERM; several processes of one name share the partitions')
    .action((consumer: string, _options: unknown, command: Command) =>
      tools.withConfig(command, (config) => consume(config, consumer, tools.io)),
    );
}

/** Runs one consumer of the configuration. Throws TURNOUT_HANDLER_MISSING if there is none of that name. */
export async function consume(loaded: TurnoutConfig, name: string, io: Io): Promise<undefined> {
  const { consumers, broker } = need(loaded, 'consume', 'consumers', 'broker');
  const definition = consumers.find((each) => each.name === name);
  if (definition === undefined) {
    const known = consumers.map((each) => each.name);
    throw new TurnoutError(
      'TURNOUT_HANDLER_MISSING',
      `The configuration has no consumer ${name} (it has: ${known.join(', ') || 'none'}).`,
      {
        details: { consumer: name, known },
      },
    );
  }
  await runService(runConsumer(definition, { source: broker.source(), logger: loggerFor(io) }), io);
}
