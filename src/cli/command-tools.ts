import { Command, Option } from 'commander';
import type { TurnoutConfig } from '../config.ts';
import { loadConfig } from './load-config.ts';
import { explainMissing } from './missing-migrations.ts';
import { toJson } from './output.ts';
import type { Io, Report } from './output.ts';

/** Options of every command; they may stand before its name or after it. */
export interface CommonOptions {
  readonly config?: string;
  readonly json?: boolean;
}

/** What the files of `commands/` build their commands with. */
export interface CommandTools {
  readonly io: Io;
  /**
   * Loads the configuration, runs the work, prints its report, and closes what the configuration opened. Says which database
   * lacks which migrations if the work fails of that.
   */
  withConfig(command: Command, work: (config: TurnoutConfig) => Promise<Report | undefined>): Promise<void>;
  /** For commands that need no configuration. */
  print(command: Command, report: Report | undefined): void;
  /** The command of that name, such as `switch`, made if there is none yet: for groups with commands in several files. */
  group(program: Command, name: string): Command;
}

export function commandTools(io: Io): CommandTools {
  function print(command: Command, report: Report | undefined): void {
    if (report === undefined) return;
    const { json } = command.optsWithGlobals<CommonOptions>();
    io.stdout(json === true ? `${toJson({ ok: true, ...report.data })}\n` : `${report.text}\n`);
  }
  return {
    io,
    print,
    async withConfig(command, work) {
      const config = await loadConfig(io.cwd, command.optsWithGlobals<CommonOptions>().config);
      try {
        print(command, await work(config));
      } catch (error) {
        await explainMissing(config, error);
        throw error;
      } finally {
        await config.close?.();
      }
    },
    group: (program, name) => program.commands.find((each) => each.name() === name) ?? program.command(name),
  };
}

/** The command that all others are added to; they inherit where it writes and that it never ends the process. */
export function rootCommand(io: Io): Command {
  return new Command('turnout')
    .configureOutput({ writeOut: io.stdout, writeErr: io.stderr })
    .configureHelp({ showGlobalOptions: true })
    .exitOverride()
    .showHelpAfterError('(add --help for what is possible)')
    .addOption(
      new Option('-c, --config <file>', 'configuration; default: turnout.config.ts (.mts, .js, .mjs) in this folder'),
    )
    .addOption(new Option('--json', 'print one JSON object as the last line of standard output'));
}
