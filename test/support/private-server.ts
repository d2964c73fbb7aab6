import { spawn, type ChildProcess } from 'node:child_process';
import {
  chownSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { waitFor } from './wait-for.ts';
import { tellWatchdog } from './watchdog.ts';

/** The user a server runs as, when it must not be root. */
export interface ServerUser {
  readonly uid: number;
  readonly gid: number;
}

export interface ServerCommand {
  readonly program: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** What the log says once clients can connect. */
  readonly readyLine: RegExp;
  readonly readyDeadlineMs: number;
  /** Orderly shutdown, for a restart. */
  readonly shutdownSignal: NodeJS.Signals;
  /** Quickest safe way down when the data is thrown away anyway. */
  readonly discardSignal: NodeJS.Signals;
}

/** A private server: one process, one directory, one log. */
export interface PrivateServer {
  readonly directory: string;
  readonly logFile: string;
  readonly pid: number | undefined;
  /** Runs a program to its end in the server's directory, its output in the log; rejects if it fails. */
  readonly run: (program: string, args: readonly string[]) => Promise<void>;
  readonly start: (command: ServerCommand) => Promise<void>;
  readonly kill: () => Promise<void>;
  readonly restart: () => Promise<void>;
  readonly stop: (options?: { readonly keepLogs?: boolean }) => Promise<void>;
}

const running = new Set<{ name: string; logFile: string }>();

/**
 * Makes the directory of a private server. From here on nothing stays behind: `stop` removes it, and should this
 * process end in any other way, the watchdog ends the server and removes the directory.
 */
export function privateServer(name: string, user?: ServerUser): PrivateServer {
  const slug = name.toLowerCase().replaceAll(/[^a-z]+/g, '-');
  const directory = mkdtempSync(join(tmpdir(), `turnout-${slug}-`));
  if (user) chownSync(directory, user.uid, user.gid);
  tellWatchdog({ watchDirectory: directory });
  const logFile = join(directory, 'server.log');
  const log = { name: slug, logFile };
  let child: ChildProcess | undefined;
  let command: ServerCommand | undefined;

  const launch = (
    program: string,
    args: readonly string[],
    signal: NodeJS.Signals,
    env?: Readonly<Record<string, string>>,
  ): ChildProcess => {
    const output = openSync(logFile, 'a');
    try {
      const started = spawn(program, args, {
        // A session of its own: Ctrl-C reaches this process, which decides what happens to its servers.
        detached: true,
        cwd: directory,
        env: { ...process.env, ...env },
        stdio: ['ignore', output, output],
        ...user,
      });
      started.unref();
      if (started.pid !== undefined) tellWatchdog({ watch: started.pid, signal });
      return started;
    } finally {
      closeSync(output);
    }
  };

  const bring = async (wanted: ServerCommand): Promise<void> => {
    const from = existsSync(logFile) ? statSync(logFile).size : 0;
    const started = launch(wanted.program, wanted.args, wanted.discardSignal, wanted.env);
    const failed = new Promise<never>((_, reject) => started.once('error', reject));
    child = started;
    running.add(log);
    const ready = waitFor(
      () => {
        const written = readFileSync(logFile).subarray(from).toString('utf8');
        return wanted.readyLine.test(written) || hasEnded(started);
      },
      { deadlineMs: wanted.readyDeadlineMs, what: `${name} to be ready` },
    );
    await Promise.race([ready, failed]).catch((cause: unknown) => {
      throw failure(name, logFile, `did not become ready`, cause);
    });
    if (hasEnded(started)) throw failure(name, logFile, `ended while starting (${describeEnd(started)})`);
  };

  const end = async (signal: NodeJS.Signals): Promise<void> => {
    const ending = child;
    child = undefined;
    if (ending?.pid === undefined) return;
    if (!hasEnded(ending)) ending.kill(signal);
    await waitFor(() => hasEnded(ending), { deadlineMs: 15_000, what: `${name} to end` }).catch(async () => {
      ending.kill('SIGKILL');
      await waitFor(() => hasEnded(ending), { what: `${name} to be killed` });
    });
    tellWatchdog({ forget: ending.pid });
  };

  return {
    directory,
    logFile,
    get pid() {
      return child && !hasEnded(child) ? child.pid : undefined;
    },
    async run(program, args) {
      const step = launch(program, args, 'SIGKILL');
      await new Promise<void>((resolve, reject) => {
        step.ref();
        step.once('error', (cause) => reject(failure(name, logFile, `could not run ${program}`, cause)));
        step.once('exit', (code) => {
          if (step.pid !== undefined) tellWatchdog({ forget: step.pid });
          if (code === 0) resolve();
          else reject(failure(name, logFile, `could not be prepared: ${program} ended with ${describeEnd(step)}`));
        });
      });
    },
    async start(wanted) {
      command = wanted;
      await bring(wanted);
    },
    kill: () => end('SIGKILL'),
    async restart() {
      if (!command) throw new Error(`${name} was never started.`);
      await end(command.shutdownSignal);
      await bring(command);
    },
    async stop(options = {}) {
      running.delete(log);
      await end(command?.discardSignal ?? 'SIGKILL');
      if (options.keepLogs) keepLog(log);
      rmSync(directory, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
      tellWatchdog({ forgetDirectory: directory });
    },
  };
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

function describeEnd(child: ChildProcess): string {
  return child.signalCode ?? `exit code ${child.exitCode}`;
}

/** A start that failed: the log's end goes in the message, the log itself is kept. */
function failure(name: string, logFile: string, what: string, cause?: unknown): Error {
  const tail = existsSync(logFile) ? readFileSync(logFile, 'utf8').trimEnd().split('\n').slice(-15).join('\n  ') : '';
  return new Error(`${name} ${what}. The end of its log:\n  ${tail}`, { cause });
}

function keepLog(log: { name: string; logFile: string }): void {
  if (!existsSync(log.logFile)) return;
  const folder = join(tmpdir(), 'turnout-logs');
  mkdirSync(folder, { recursive: true });
  const stamp = new Date().toISOString().replaceAll(/[:.]/g, '-');
  const kept = join(folder, `${log.name}-${stamp}-${process.pid}.log`);
  copyFileSync(log.logFile, kept);
  process.stderr.write(`The log of ${log.name} was kept: ${kept}\n`);
}

// Ends with an error and servers still running: their logs are wanted. The watchdog does the rest.
process.once('exit', (code) => {
  if (code !== 0) for (const log of running) keepLog(log);
});

/**
 * Starts a server on ports that were free a moment ago: should somebody have been faster, tries again with others.
 * A start that fails for good leaves its log behind, and nothing else.
 */
export async function startOnFreePorts<T>(
  make: () => PrivateServer,
  start: (server: PrivateServer) => Promise<T>,
): Promise<{ server: PrivateServer; started: T }> {
  for (let attempt = 1; ; attempt++) {
    const server = make();
    try {
      return { server, started: await start(server) };
    } catch (error) {
      const portTaken =
        error instanceof Error && /address already in use|could not bind|BindException/i.test(error.message);
      await server.stop({ keepLogs: !portTaken });
      if (!portTaken || attempt === 3) throw error;
    }
  }
}
