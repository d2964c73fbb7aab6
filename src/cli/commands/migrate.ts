import type { Command } from 'commander';
import { migrate, migrationScript } from '../../database/index.ts';
import type { MigrationSet } from '../../database/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { databasesOf } from '../missing-migrations.ts';
import { table } from '../output.ts';
import type { Report } from '../output.ts';

const knownSets: readonly MigrationSet[] = ['producer', 'consumer', 'roles'];

export function addMigrateCommands(program: Command, tools: CommandTools): void {
  program
    .command('migrate')
    .description('apply the migrations that the configured databases lack')
    .option(
      '--set <names...>',
      'only these sets: producer, consumer, roles; default: what the configuration needs (never roles)',
    )
    .option('--dry-run', 'say what would be applied, and change nothing')
    .option(
      '--print',
      'print the SQL of the sets named with --set, for psql or another migrator; needs no configuration',
    )
    .action(async (options: { set?: string[]; dryRun?: boolean; print?: boolean }, command: Command) => {
      if (options.print === true) tools.print(command, printMigrations(options.set));
      else
        await tools.withConfig(command, (config) =>
          migrateDatabases(config, { sets: options.set, dryRun: options.dryRun === true }),
        );
    });
}

/** The SQL of migration sets, ready for psql. */
export function printMigrations(names: readonly string[] | undefined): Report {
  const sets = parseSets(names ?? []);
  if (sets.length === 0) {
    throw new TurnoutError(
      'TURNOUT_CONFIG_INVALID',
      '`turnout migrate --print` needs --set, for instance `--set producer`.',
      {
        details: { path: '--set' },
      },
    );
  }
  const sql = migrationScript(sets);
  return { data: { sets, sql }, text: sql.trimEnd() };
}

/** Brings the configured databases up to date: the outbox's with `producer`, each consumer's with `consumer`. */
export async function migrateDatabases(
  config: TurnoutConfig,
  options: { readonly sets: readonly string[] | undefined; readonly dryRun: boolean },
): Promise<Report> {
  const wanted = options.sets === undefined ? undefined : parseSets(options.sets);
  const targets = databasesOf(config);
  if (targets.length === 0) {
    throw new TurnoutError('TURNOUT_CONFIG_INVALID', 'The configuration names neither a database nor a consumer.', {
      details: { path: 'database' },
    });
  }
  const applied: { database: string; migration: string; state: string }[] = [];
  for (const { name, database, sets } of targets) {
    const chosen = wanted === undefined ? sets : wanted.filter((set) => set === 'roles' || sets.includes(set));
    if (chosen.length === 0) continue;
    for (const each of await migrate(database, chosen, { dryRun: options.dryRun })) {
      applied.push({ database: name, migration: each.name, state: each.state });
    }
  }
  const text =
    applied.length === 0
      ? 'Up to date.'
      : table(
          ['database', 'migration', 'state'],
          applied.map((each) => [each.database, each.migration, each.state]),
        );
  return { data: { dryRun: options.dryRun, applied }, text };
}

function parseSets(names: readonly string[]): MigrationSet[] {
  return names
    .flatMap((name) => name.split(','))
    .map((name) => {
      const set = knownSets.find((known) => known === name.trim());
      if (set !== undefined) return set;
      throw new TurnoutError(
        'TURNOUT_CONFIG_INVALID',
        `There is no migration set ${name} (there are: ${knownSets.join(', ')}).`,
        {
          details: { path: '--set', set: name },
        },
      );
    });
}
