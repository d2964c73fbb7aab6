import { CommanderError } from 'commander';
import type { Command } from 'commander';
import {
  addBridgeCommands,
  addCheckCommands,
  addCleanupCommands,
  addConsumeCommands,
  addExplainCommands,
  addMigrateCommands,
  addProxyCommands,
  addRelayCommands,
  addRunCommands,
  addShadowCommands,
  addStatusCommands,
  addSwitchCommands,
  addTopicsCommands,
} from './commands/index.ts';
import { commandTools, rootCommand } from './command-tools.ts';
import { describeError, errorText, toJson } from './output.ts';
import type { Io } from './output.ts';
import { packageVersion } from './version.ts';

/**
 * Runs `turnout` with the arguments behind its name and resolves with its exit status: 0 done, 1 failed (the code of
 * the error and its remedy were printed), 2 the command line was wrong. It never sets `process.exitCode` itself.
 */
export async function runCli(args: readonly string[], given: Io): Promise<number> {
  const io = { ...given, json: args.includes('--json') };
  const program = buildProgram(io);
  try {
    await program.parseAsync([...args], { from: 'user' });
    return 0;
  } catch (error) {
    const wrongLine = error instanceof CommanderError;
    // Help and version end in an "error" too, and are printed already.
    if (wrongLine && error.exitCode === 0) {
      if (io.json) io.stdout(`${toJson({ ok: true, version: packageVersion() })}\n`);
      return 0;
    }
    // Commander has printed its own already.
    if (!wrongLine) io.stderr(errorText(error));
    if (io.json) io.stdout(`${toJson({ ok: false, error: describeError(error) })}\n`);
    return wrongLine ? 2 : 1;
  }
}

/** Every command, each group of them by a file of `commands/`. */
function buildProgram(io: Io): Command {
  const program = rootCommand(io)
    .description('Moves services from synchronous RPC to events, one consumer at a time.')
    .version(packageVersion(), '-V, --version', 'print the version of Turnout')
    .addHelpText('after', firstTime);
  const tools = commandTools(io);
  addMigrateCommands(program, tools);
  addTopicsCommands(program, tools);
  addRunCommands(program, tools);
  addConsumeCommands(program, tools);
  addBridgeCommands(program, tools);
  addProxyCommands(program, tools);
  addSwitchCommands(program, tools);
  addCheckCommands(program, tools);
  addExplainCommands(program, tools);
  addCleanupCommands(program, tools);
  addShadowCommands(program, tools);
  addRelayCommands(program, tools);
  addStatusCommands(program, tools);
  return program;
}

const firstTime = `
A first time, in order:
  turnout migrate                      create the tables in the databases of turnout.config.ts
  turnout topics apply --dry-run       what would be created in Kafka and registered in the database
  turnout topics apply
  turnout run                          publish the outbox, make calls again that are owed (a second one stands by)
  turnout switch <name> rpc            create a switchover: from here on no call is lost
  turnout consume <consumer>           in the consuming service
  turnout switch <name> shadow --reason "…"                 the event path is looked at, and has no effect
  turnout switch <name> ramp --percent 1 --reason "…"       1 % of the keys go as events
  turnout switch <name> event --reason "…"                  all of them
  turnout switch <name> rpc --reason "…"                    back again, at once

Exit status: 0 done, 1 failed (with a code and what to do; see docs/errors.md), 2 wrong command line.`;
