import { spawn, type ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';
import { fileURLToPath } from 'node:url';

type Message =
  | { watch: number; signal: NodeJS.Signals }
  | { forget: number }
  | { watchDirectory: string }
  | { forgetDirectory: string };

let watchdog: ChildProcess | undefined;

/**
 * Tells this process's watchdog (see `watchdog.mjs`) what to end and remove should this process be gone. It is started
 * with the first message, in a session of its own, and never keeps this process alive.
 */
export function tellWatchdog(message: Message): void {
  watchdog ??= startWatchdog();
  watchdog.stdin?.write(`${JSON.stringify(message)}\n`);
}

function startWatchdog(): ChildProcess {
  const child = spawn(process.execPath, [fileURLToPath(new URL('./watchdog.mjs', import.meta.url))], {
    detached: true,
    cwd: '/',
    env: {},
    stdio: ['pipe', 'ignore', 'ignore'],
  });
  child.unref();
  (child.stdin as Socket).unref();
  child.stdin.on('error', () => {
    // It is gone: what was registered with it is lost, the next message starts another.
    watchdog = undefined;
  });
  return child;
}
