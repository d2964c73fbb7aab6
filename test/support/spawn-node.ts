import { spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { waitFor } from './wait-for.ts';
import { tellWatchdog } from './watchdog.ts';

/** How a process ended. */
export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A process that runs one of our files and talks in lines. */
export interface NodeProcess {
  readonly pid: number;
  /** All that it wrote so far, standard output and error in the order of arrival. */
  readonly output: string;
  /**
   * The next line of standard output that matches, counted from the last one found; lines between are passed over.
   * Rejects, with all output, when the process ends first or at the deadline (30,000 ms unless given).
   */
  line(pattern: RegExp, options?: { readonly deadlineMs?: number }): Promise<RegExpExecArray>;
  /** Writes a line to its standard input. */
  send(line: string): void;
  /** Sends a signal; resolves when the process is gone. Nothing happens to one that is gone already. */
  kill(signal?: NodeJS.Signals): Promise<Exit>;
  /** Sends a signal and does not wait, for instance SIGSTOP and SIGCONT. */
  signal(signal: NodeJS.Signals): void;
  /** Resolves when the process has ended, however it did. */
  readonly exited: Promise<Exit>;
}

const root = fileURLToPath(new URL('../../', import.meta.url));

/**
 * Runs a TypeScript file in a Node process of its own (one process, so that SIGKILL hits the right one). It ends with
 * the process that started it, at the latest.
 *
 * @example
 * const relay = spawnNode(new URL('./relay-process.ts', import.meta.url), [database.url]);
 * await relay.line(/^ready$/);
 * await relay.kill('SIGKILL');
 */
export function spawnNode(
  file: string | URL,
  args: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): NodeProcess {
  const path = typeof file === 'string' ? file : fileURLToPath(file);
  const loader = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
  return spawnProgram(process.execPath, ['--import', loader, path, ...args], {
    TSX_TSCONFIG_PATH: `${root}tsconfig.json`,
    ...env,
  });
}

/** Runs any program as {@link spawnNode} runs a file. */
export function spawnProgram(
  program: string,
  args: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): NodeProcess {
  const child = spawn(program, args, { cwd: root, env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'] });
  const { pid } = child;
  if (pid === undefined) throw new Error(`${program} could not be started.`);
  tellWatchdog({ watch: pid, signal: 'SIGKILL' });

  let output = '';
  const lines: string[] = [];
  let read = 0;
  let closed = false;
  createInterface({ input: child.stdout }).on('line', (line) => lines.push(line));
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  }
  // Writing to one that was killed is what fault tests do.
  child.stdin.on('error', () => {});

  // `close`, not `exit`: by then all it wrote has been read.
  const exited = new Promise<Exit>((resolve) => {
    child.once('close', (code, signal) => {
      closed = true;
      tellWatchdog({ forget: pid });
      resolve({ code, signal });
    });
  });

  const nextMatch = (pattern: RegExp): RegExpExecArray | undefined => {
    const stateless = new RegExp(pattern.source, pattern.flags.replace(/[gy]/g, ''));
    while (read < lines.length) {
      const match = stateless.exec(lines[read++] ?? '');
      if (match) return match;
    }
    return undefined;
  };

  return {
    pid,
    exited,
    get output() {
      return output;
    },
    async line(pattern, { deadlineMs = 30_000 } = {}) {
      const found = await waitFor(() => nextMatch(pattern) ?? (closed && 'ended'), { deadlineMs, everyMs: 5 }).catch(
        () => 'nothing',
      );
      if (typeof found !== 'string') return found;
      const why = found === 'ended' ? 'the process ended first' : `${deadlineMs} ms passed`;
      throw new Error(`No line matches ${pattern}: ${why}. ${[program, ...args].join(' ')} wrote:\n${output}`);
    },
    send: (line) => void child.stdin.write(`${line}\n`),
    signal: (signal) => void child.kill(signal),
    async kill(signal = 'SIGTERM') {
      if (!closed) child.kill(signal);
      return exited;
    },
  };
}
