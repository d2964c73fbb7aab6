import { execFile } from 'node:child_process';
import { accessSync, constants, existsSync, statSync } from 'node:fs';
import { request } from 'node:http';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import type { Finding } from './choice.ts';

const run = promisify(execFile);

/** Looks for the address of an instance that somebody else runs. */
export function lookAtEnvironment(variable: string, example: string): Finding {
  return process.env[variable]
    ? { usable: true }
    : {
        usable: false,
        missing: `${variable} is not set`,
        remedy: `set ${variable}, for instance ${variable}=${example}`,
      };
}

/** Looks for a Docker engine that answers; the `docker` command alone proves nothing. */
export async function lookAtDocker(): Promise<Finding> {
  const address = process.env['DOCKER_HOST'];
  const sockets = address?.startsWith('unix://')
    ? [address.slice('unix://'.length)]
    : ['/var/run/docker.sock', join(homedir(), '.docker/run/docker.sock'), ...runtimeSocket()];
  if (address?.startsWith('tcp://')) {
    if (await answersPing({ host: new URL(address).hostname, port: Number(new URL(address).port || 2375) })) {
      return { usable: true };
    }
  } else {
    for (const socketPath of sockets) {
      if (existsSync(socketPath) && (await answersPing({ socketPath }))) return { usable: true };
    }
  }
  return { usable: false, missing: 'no Docker engine answers', remedy: 'start Docker (or set DOCKER_HOST)' };
}

function runtimeSocket(): string[] {
  const directory = process.env['XDG_RUNTIME_DIR'];
  return directory ? [join(directory, 'docker.sock')] : [];
}

function answersPing(where: { socketPath: string } | { host: string; port: number }): Promise<boolean> {
  return new Promise((resolve) => {
    const ping = request({ ...where, path: '/_ping', timeout: 1_000 }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    });
    ping.once('timeout', () => ping.destroy(new Error('timeout')));
    ping.once('error', () => resolve(false));
    ping.end();
  });
}

/** The full path of a program on PATH, or in one of `folders`. */
export function findProgram(name: string, folders: readonly string[] = []): string | undefined {
  const path = (process.env['PATH'] ?? '').split(delimiter).filter((folder) => folder !== '');
  for (const folder of [...path, ...folders]) {
    const candidate = join(folder, name);
    try {
      accessSync(candidate, constants.X_OK);
      if (statSync(candidate).isFile()) return candidate;
    } catch {
      // Not here.
    }
  }
  return undefined;
}

/** What a program prints, standard output and error together. */
export async function outputOf(program: string, args: readonly string[]): Promise<string> {
  const { stdout, stderr } = await run(program, args);
  return `${stdout}${stderr}`;
}
