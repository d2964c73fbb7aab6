import { allowedSources, findSource, type Finding } from './choice.ts';
import { freePort } from './free-port.ts';
import { findProgram, lookAtDocker, lookAtEnvironment, outputOf } from './look.ts';
import { notOurs, progressTo, type Part, type PartOptions } from './part.ts';
import { privateServer, startOnFreePorts } from './private-server.ts';

export interface Redis extends Part {
  readonly url: string;
}

const image = 'redis:7-alpine';
/** Without `noeviction` Redis may drop jobs; the append-only file lets a killed instance come back with them. */
const settings = ['--maxmemory-policy', 'noeviction', '--appendonly', 'yes', '--save', ''];

/**
 * Starts a private Redis, or names the one at `TURNOUT_REDIS_URL`.
 *
 * @example const redis = await startRedis(); … await redis.stop();
 */
export async function startRedis(options: PartOptions = {}): Promise<Redis> {
  const progress = progressTo(options.onProgress);
  try {
    const allowed = allowedSources(['environment', 'docker', 'local'], {
      environment: process.env['TURNOUT_PARTS'],
      restartable: options.restartable,
    });
    const source = await findSource(
      'Redis',
      {
        environment: () => lookAtEnvironment('TURNOUT_REDIS_URL', 'redis://127.0.0.1:6379'),
        docker: lookAtDocker,
        local: lookForLocal,
      },
      allowed,
    );
    switch (source) {
      case 'environment':
        return fromEnvironment(process.env['TURNOUT_REDIS_URL'] ?? '');
      case 'docker':
        return await fromDocker(progress.report);
      default:
        return await fromBinary(progress.report);
    }
  } finally {
    progress.done();
  }
}

function fromEnvironment(url: string): Redis {
  return {
    name: 'Redis',
    version: 'unknown',
    source: 'environment',
    url,
    stop: () => Promise.resolve(),
    ...notOurs('Redis', 'environment'),
  };
}

async function fromDocker(report: (message: string) => void): Promise<Redis> {
  report(`Starting Redis in Docker (${image})`);
  const { GenericContainer, Wait } = await import('testcontainers');
  const container = await new GenericContainer(image)
    .withCommand(['redis-server', ...settings])
    .withExposedPorts(6379)
    .withWaitStrategy(Wait.forLogMessage(/Ready to accept connections/))
    .start();
  return {
    name: 'Redis',
    version: image.slice('redis:'.length),
    source: 'docker',
    url: `redis://${container.getHost()}:${container.getMappedPort(6379)}`,
    stop: async () => void (await container.stop()),
    ...notOurs('Redis', 'docker'),
  };
}

async function fromBinary(report: (message: string) => void): Promise<Redis> {
  const program = findProgram('redis-server');
  if (!program) throw new Error('redis-server was there a moment ago.');
  const { server, started } = await startOnFreePorts(
    () => privateServer('Redis'),
    async (server) => {
      const port = await freePort();
      report(`Starting Redis on port ${port}`);
      await server.start({
        program,
        args: ['--port', String(port), '--bind', '127.0.0.1', '--dir', server.directory, ...settings],
        readyLine: /Ready to accept connections/,
        readyDeadlineMs: 20_000,
        shutdownSignal: 'SIGTERM',
        discardSignal: 'SIGKILL',
      });
      return `redis://127.0.0.1:${port}`;
    },
  );
  return {
    name: 'Redis',
    version: /v=([\d.]+)/.exec(await outputOf(program, ['--version']))?.[1] ?? 'unknown',
    source: 'local',
    url: started,
    logFile: server.logFile,
    get pid() {
      return server.pid;
    },
    stop: server.stop,
    kill: server.kill,
    restart: server.restart,
  };
}

function lookForLocal(): Finding {
  return findProgram('redis-server')
    ? { usable: true }
    : {
        usable: false,
        missing: 'no redis-server on PATH',
        remedy: 'install Redis (apt-get install redis-server, brew install redis)',
      };
}
