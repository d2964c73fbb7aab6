import type { Command } from 'commander';
import { runProxy } from '../../proxy/index.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { loggerFor } from '../logger.ts';
import type { Io } from '../output.ts';
import { unknown } from './bridge.ts';
import { runService } from './run-service.ts';

export function addProxyCommands(program: Command, tools: CommandTools): void {
  program
    .command('proxy')
    .argument('<name>', 'name of a proxy of the configuration')
    .description(
      'stand in front of an endpoint whose callers nobody can change, and record their calls as events; until SIGTERM',
    )
    .addHelpText(
      'after',
      '\nBeside it `turnout run` has to run for the same source: it publishes what was recorded, and makes again the calls that are owed.',
    )
    .action((name: string, _options: unknown, command: Command) =>
      tools.withConfig(command, (config) => proxy(config, name, tools.io)),
    );
}

/** Runs one proxy of the configuration. Throws TURNOUT_HANDLER_MISSING if there is none of that name. */
async function proxy(loaded: TurnoutConfig, name: string, io: Io): Promise<undefined> {
  const { proxies } = need(loaded, 'proxy', 'proxies');
  const definition = proxies.find((each) => each.name === name);
  if (definition === undefined) throw unknown('proxy', name, proxies);
  await runService(runProxy(definition, { logger: loggerFor(io) }), io);
}
