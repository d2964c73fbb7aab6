import { Command, CommanderError, Option } from 'commander';
import {
  consume,
  migrateDatabases,
  printMigrations,
  rebase,
  run,
  showHistory,
  showStatus,
  showSwitchovers,
  switchStage,
  topicsApply,
} from './commands/index.ts';
import type { TurnoutConfig } from '../config.ts';
import { loadConfig } from './load-config.ts';
import { describeError, errorText, toJson } from './output.ts';
import type { Io, Report } from './output.ts';

interface CommonOptions {
  readonly config?: string;
  readonly json?: boolean;
}

/**
 * Runs `turnout` with the arguments behind its name and resolves with its exit status: 0 done, 1 failed (the code of
 * the error and its remedy were printed), 2 the command line was wrong. It never sets `process.exitCode` itself.
 */
export async function runCli(args: readonly string[], io: Io): Promise<number> {
  const program = buildProgram(io);
  try {
    await program.parseAsync([...args], { from: 'user' });
    return 0;
  } catch (error) {
    const wrongLine = error instanceof CommanderError;
    // Help, for instance, ends in an "error" too.
    if (wrongLine && error.exitCode === 0) return 0;
    // Commander has printed its own already.
    if (!wrongLine) io.stderr(errorText(error));
    if (args.includes('--json')) io.stdout(`${toJson({ ok: false, error: describeError(error) })}\n`);
    return wrongLine ? 2 : 1;
  }
}

function buildProgram(io: Io): Command {
  const program = new Command('turnout')
    .description('Moves services from synchronous RPC to events, one consumer at a time.')
    .configureOutput({ writeOut: io.stdout, writeErr: io.stderr })
    .exitOverride()
    .showHelpAfterError('(add --help for what is possible)')
    .addHelpText(
      'after',
      `
A first time, in order:
  turnout migrate                      create the tables in the databases of turnout.config.ts
  turnout topics apply --dry-run       what would be created in Kafka and registered in the database
  turnout topics apply
  turnout run                          publish the outbox, make calls again that are owed (a second one stands by)
  turnout switch <name> rpc            create a switchover: from here on no call is lost
  turnout consume <consumer>           in the consuming service
  turnout switch <name> event --force --reason "…"
  turnout switch <name> rpc --reason "…"        back again, at once

Exit status: 0 done, 1 failed (with a code and what to do; see docs/errors.md), 2 wrong command line.`,
    );

  // Every command takes these, wherever they stand.
  const common = (command: Command): Command =>
    command
      .addOption(
        new Option('-c, --config <file>', 'configuration; default: turnout.config.ts (.mts, .js, .mjs) in this folder'),
      )
      .addOption(new Option('--json', 'print one JSON object as the last line of standard output'))
      .exitOverride()
      .configureOutput({ writeOut: io.stdout, writeErr: io.stderr });

  /** Loads the configuration, runs the command, prints its report, and closes what the configuration opened. */
  async function withConfig(
    options: CommonOptions,
    command: (config: TurnoutConfig) => Promise<Report | undefined>,
  ): Promise<void> {
    const config = await loadConfig(io.cwd, options.config);
    try {
      print(options, await command(config));
    } finally {
      await config.close?.();
    }
  }

  function print(options: CommonOptions, report: Report | undefined): void {
    if (report === undefined) return;
    io.stdout(options.json === true ? `${toJson({ ok: true, ...report.data })}\n` : `${report.text}\n`);
  }

  common(program.command('migrate'))
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
    .action(async (options: CommonOptions & { set?: string[]; dryRun?: boolean; print?: boolean }) => {
      if (options.print === true) print(options, printMigrations(options.set));
      else
        await withConfig(options, (config) =>
          migrateDatabases(config, { sets: options.set, dryRun: options.dryRun === true }),
        );
    });

  const topics = program.command('topics').description('Kafka topics and event types of the configured events');
  common(topics.command('apply'))
    .description(
      'create the topics that are missing, check those that exist, and register source, topics and event types in the database',
    )
    .option('--dry-run', 'say what would be done, and change nothing')
    .action((options: CommonOptions & { dryRun?: boolean }) =>
      withConfig(options, (config) => topicsApply(config, { dryRun: options.dryRun === true })),
    );

  common(program.command('run'))
    .description(
      'publish the outbox to Kafka, make again the calls that are owed, make and empty outbox partitions; until SIGTERM',
    )
    .addHelpText('after', '\nRun it twice: one leads, the other stands by and takes over within seconds.')
    .action((options: CommonOptions) => withConfig(options, (config) => run(config, io)));

  common(program.command('consume'))
    .argument('<consumer>', 'name of a consumer of the configuration')
    .description('run one consumer until SIGTERM; several processes of one name share the partitions')
    .action((consumer: string, options: CommonOptions) =>
      withConfig(options, (config) => consume(config, consumer, io)),
    );

  const switching = common(program.command('switch'))
    .usage('<name> <stage> [options] | status | history <name>')
    .argument('<name>', 'name of a switchover of the configuration')
    .argument('<stage>', 'rpc or event; or register, which adds event types to the switchover')
    .description('set the stage of a switchover; from the next transaction on, events are given the new route')
    .option('-r, --reason <text>', 'why; the history keeps it (may be left out when the switchover is created)')
    .option('-f, --force', 'promote without checks that say it is ready')
    .option('-p, --percent <number>', 'share of keys for stage ramp', Number)
    .addHelpText(
      'after',
      `
The first \`turnout switch <name> rpc\` creates the switchover: it waits until transactions that began before it are over and
records where its consumer starts. Run it before code that declares the switchover is deployed. Later it is the way back, and
one statement: it needs no broker, and no configuration that fits.
\`turnout switch <name> register\` adds the event types that the configuration's switchover has got since; run it before the
code that makes their calls through it is deployed. None is ever taken away.

  turnout switch order-confirmation rpc
  turnout switch order-confirmation event --force --reason "e-mail team is ready, see MAIL-12"
  turnout switch order-confirmation rpc --reason "template broken"`,
    )
    .action(
      (name: string, stage: string, options: CommonOptions & { reason?: string; force?: boolean; percent?: number }) =>
        withConfig(options, (config) =>
          switchStage(
            config,
            { name, stage, reason: options.reason, force: options.force === true, percent: options.percent },
            io,
          ),
        ),
    );
  common(switching.command('status'))
    .description('stage, epoch and owed calls of every switchover')
    .action((_options: unknown, command: Command) =>
      withConfig(command.optsWithGlobals(), (config) => showSwitchovers(config)),
    );
  common(switching.command('history'))
    .argument('<name>', 'name of a switchover')
    .description('every stage change of a switchover: when, who, why')
    .action((name: string, _options: unknown, command: Command) =>
      withConfig(command.optsWithGlobals(), (config) => showHistory(config, name)),
    );

  const relay = program.command('relay').description('after a database was put back');
  common(relay.command('rebase'))
    .description('give the sources of the database a new generation of numbers, after TURNOUT_DATABASE_REWOUND')
    .requiredOption('-r, --reason <text>', 'why; turnout.rebase keeps it')
    .addHelpText('after', '\nStop every relay first. docs/relay.md says what to find out before, and what follows.')
    .action((options: CommonOptions & { reason: string }) =>
      withConfig(options, (config) => rebase(config, options.reason)),
    );

  common(program.command('status'))
    .description('what is promised for each switchover and consumer as it is configured now, and how the relay stands')
    .action((options: CommonOptions) => withConfig(options, (config) => showStatus(config)));

  return program;
}
