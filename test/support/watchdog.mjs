// Cleans up after a process that can no longer do it itself.
//
// The process that starts servers holds the other end of this process's stdin. However that process ends (return,
// Ctrl-C, uncaught error, SIGKILL), the kernel closes the pipe, and what is still registered here is ended by pid
// and its directories are removed. Plain JavaScript, so that it starts in milliseconds with no loader.
//
// Lines on stdin, one JSON object each: {"watch": pid, "signal": "SIGQUIT"} {"forget": pid}
//                                       {"watchDirectory": path} {"forgetDirectory": path}
import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';

/** @type {Map<number, { signal: string, identity: string | undefined }>} */
const processes = new Map();
/** @type {Set<string>} */
const directories = new Set();

/** A pid may be given to another process once its owner is gone: the start time tells the two apart.
 * @param {number} pid */
function identityOf(pid) {
  try {
    if (process.platform === 'linux') {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return fields[0] === 'Z' ? undefined : fields[19];
    }
    return execFileSync('ps', ['-o', 'lstart=', '-p', String(pid)], { encoding: 'utf8' }).trim() || undefined;
  } catch {
    return undefined;
  }
}

/** @param {number} pid @param {string} signal */
function signalProcess(pid, signal) {
  try {
    process.kill(pid, signal);
  } catch {
    // Already gone.
  }
}

function survivors() {
  return [...processes].filter(([pid, { identity }]) => identity !== undefined && identityOf(pid) === identity);
}

async function cleanUp() {
  for (const [pid, { signal }] of survivors().toReversed()) signalProcess(pid, signal);
  for (const deadline = Date.now() + 5_000; survivors().length > 0 && Date.now() < deadline;) await delay(20);
  for (const [pid] of survivors()) signalProcess(pid, 'SIGKILL');
  for (const deadline = Date.now() + 5_000; survivors().length > 0 && Date.now() < deadline;) await delay(20);
  for (const directory of directories) {
    rmSync(directory, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  }
}

// A terminal's Ctrl-C or a closed session must not end the one process that cleans up after it.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => {});

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const message = JSON.parse(line);
  if (message.watch) processes.set(message.watch, { signal: message.signal, identity: identityOf(message.watch) });
  if (message.forget) processes.delete(message.forget);
  if (message.watchDirectory) directories.add(message.watchDirectory);
  if (message.forgetDirectory) directories.delete(message.forgetDirectory);
});
lines.on('close', () => {
  void cleanUp().then(() => process.exit(0));
});
