#!/usr/bin/env node
import { runCli } from './program.ts';

function stopSignal(): AbortSignal {
  const stop = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) {
    process.on(name, () => {
      // Asked twice: no more waiting for what is in hand. Nothing is lost by it, only repeated.
      if (stop.signal.aborted) process.exit(name === 'SIGINT' ? 130 : 143);
      stop.abort();
    });
  }
  return stop.signal;
}

process.exitCode = await runCli(process.argv.slice(2), {
  cwd: process.cwd(),
  stdout: (text) => void process.stdout.write(text),
  stderr: (text) => void process.stderr.write(text),
  interactive: process.stderr.isTTY,
  stopSignal,
});
// For configurations without `close`: what they left open must not keep a finished command alive.
setTimeout(() => process.exit(), 1_000).unref();
