import type { Command } from 'commander';
import { runConsumer } from '../../consumer/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import { requireBridged } from '../../switchover/index.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { loggerFor } from '../logger.ts';
import type { Io } from '../output.ts';
import { runService } from './run-service.ts';

export function addBridgeCommands(program: Command, tools: CommandTools): void {
  program
    .command('bridge')
    .argument('<name>', 'name of a bridge of the configuration')
    .description(
      'call, for events, an endpoint that nobody can change; until SIGTERM; several processes share the partitions',
    )
    .action((name: string, _options: unknown, command: Command) =>
      tools.withConfig(command, (config) => bridge(config, name, tools.io)),
    );
}

/** Runs one bridge of the configuration. Throws TURNOUT_HANDLER_MISSING if there is none of that name. */
async function bridge(loaded: TurnoutConfig, name: string, io: Io): Promise<undefined> {
  const { bridges, broker } = need(loaded, 'bridge', 'bridges', 'broker');
  const definition = bridges.find((each) => each.name === name);
  if (definition === undefined) throw unknown('bridge', name, bridges);
  const { source, database } = loaded;
  // Where the configuration is the publisher's too, its row can be asked whether a bridge may stand there.
  if (source !== undefined && database !== undefined) await requireBridged(database, source, definition.name);
  await runService(runConsumer(definition, { source: broker.source(), logger: loggerFor(io) }), io);
}

/** For a name that the configuration doesn't have. */
export function unknown(
  kind: 'bridge' | 'proxy',
  name: string,
  there: readonly { readonly name: string }[],
): TurnoutError {
  const known = there.map((each) => each.name);
  return new TurnoutError(
    'TURNOUT_HANDLER_MISSING',
    `The configuration has no ${kind} ${name} (it has: ${known.join(', ') || 'none'}).`,
    { details: { [kind]: name, known } },
  );
}
