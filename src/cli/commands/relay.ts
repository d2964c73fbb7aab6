import type { Command } from 'commander';
import { rebaseRelay } from '../../relay/index.ts';
import type { TurnoutConfig } from '../../config.ts';
import { need } from '../validate-config.ts';
import type { CommandTools } from '../command-tools.ts';
import { table } from '../output.ts';
import type { Report } from '../output.ts';

export function addRelayCommands(program: Command, tools: CommandTools): void {
  program
    .command('relay')
    .description('after a database was put back')
    .command('rebase')
    .description('give the sources of the database a new generation of numbers, after TURNOUT_DATABASE_REWOUND')
    .requiredOption('-r, --reason <text>', 'why; turnout.rebase keeps it')
    .addHelpText('after', '\nStop every relay first. docs/relay.md says what to find out before, and what follows.')
    .action((options: { reason: string }, command: Command) =>
      tools.withConfig(command, (config) => rebase(config, options.reason)),
    );
}

/** Starts new generations after a database was put back or copied. */
export async function rebase(loaded: TurnoutConfig, reason: string): Promise<Report> {
  const { database } = need(loaded, 'relay rebase', 'database');
  const sources = await rebaseRelay(database, reason);
  const copied = sources.some((each) => each.copied);
  const text = [
    table(
      ['source', 'generation'],
      sources.map((each) => [each.source, String(each.generation)]),
    ),
    copied
      ? 'The database was copied from another cluster: everything in the outbox is published again, once a relay runs.'
      : 'The relay counts from 1 in these generations; start it.',
  ].join('\n');
  return { data: { sources: sources.map(({ source, generation }) => ({ source, generation })), copied }, text };
}
