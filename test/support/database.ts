import { createHash, randomBytes } from 'node:crypto';
import { Client, Pool, type PoolConfig } from 'pg';
import { uniqueName } from './unique-name.ts';
import { waitFor } from './wait-for.ts';

/** What every database cloned from it starts with. */
export interface DatabaseTemplate {
  /** Distinguishes this template from others: one key, one content. */
  readonly key: string;
  /** Fills an empty database, once for each run of the tests. Connections it opens must be closed when it settles. */
  prepare(url: string): Promise<void>;
}

export interface Database {
  readonly name: string;
  readonly url: string;
  /** A pool that {@link drop} ends. Clients taken from it must have been given back by then. */
  pool(config?: PoolConfig): Pool;
  /** Drops the database. Rejects, listing them, when connections to it are still open: somebody forgot to close them. */
  drop(): Promise<void>;
}

export interface DatabaseOptions {
  readonly template?: DatabaseTemplate;
}

/** Shared by all processes of one test run, so that an instance that outlives the run never serves an old template. */
const runId = (process.env['TURNOUT_TEST_RUN'] ??= randomBytes(4).toString('hex'));

/**
 * A fresh database, empty or cloned from a template (a clone takes some 50 ms however much the template holds).
 *
 * @example
 * const database = await createDatabase(postgres, { template: { key: 'producer', prepare: migrateProducer } });
 * const pool = database.pool();
 * …
 * await database.drop();
 */
export async function createDatabase(
  postgres: { readonly url: string },
  options: DatabaseOptions = {},
): Promise<Database> {
  const template = options.template ? await templateDatabase(postgres.url, options.template) : 'template1';
  const name = uniqueName('turnout_test');
  await asAdmin(postgres.url, (admin) => admin.query(`create database ${name} template ${template}`));
  const url = urlOf(postgres.url, name);
  const pools: Pool[] = [];
  return {
    name,
    url,
    pool(config = {}) {
      const pool = new Pool({ connectionString: url, ...config });
      // A server that a test kills ends idle clients too; the pool replaces them, and unheard it would end the process.
      pool.on('error', () => {});
      pools.push(pool);
      return pool;
    },
    async drop() {
      await Promise.all(pools.map(endPool));
      await asAdmin(postgres.url, async (admin) => {
        const open = await connectionsLeft(admin, name);
        await admin.query(`drop database if exists ${name} with (force)`);
        if (open.length > 0) {
          throw new Error(`Connections to the test's database were left open: close them.\n  ${open.join('\n  ')}`);
        }
      });
    },
  };
}

/** Drops what this run's templates left in an instance that goes on living. */
export async function dropTemplates(postgres: { readonly url: string }): Promise<void> {
  await asAdmin(postgres.url, async (admin) => {
    const { rows } = await admin.query<{ datname: string }>('select datname from pg_database where datname like $1', [
      `turnout\\_template\\_${runId}\\_%`,
    ]);
    for (const { datname } of rows) await admin.query(`drop database if exists ${datname} with (force)`);
  });
}

async function templateDatabase(url: string, template: DatabaseTemplate): Promise<string> {
  const name = `turnout_template_${runId}_${createHash('sha256').update(template.key).digest('hex').slice(0, 16)}`;
  await asAdmin(url, async (admin) => {
    // Test files run in several processes: one prepares the template, the others wait for it.
    await admin.query('select pg_advisory_lock(hashtext($1))', [name]);
    const { rowCount } = await admin.query('select from pg_database where datname = $1', [name]);
    if (rowCount) return;
    const partial = `${name}_partial`;
    await admin.query(`drop database if exists ${partial} with (force)`);
    await admin.query(`create database ${partial}`);
    await template.prepare(urlOf(url, partial));
    const open = await connectionsLeft(admin, partial);
    if (open.length > 0) {
      throw new Error(`Template "${template.key}" left connections open: close them.\n  ${open.join('\n  ')}`);
    }
    // Under its final name only when it is complete.
    await admin.query(`alter database ${partial} rename to ${name}`);
  });
  return name;
}

/** Connections that stay open; a backend takes a moment to go after its client closed. */
async function connectionsLeft(admin: Client, database: string): Promise<string[]> {
  const open = async (): Promise<string[]> => {
    const { rows } = await admin.query<{ line: string }>(
      `select format('pid %s, %s, %s, last statement: %s', pid, coalesce(nullif(application_name, ''), 'no application name'),
                     coalesce(state, backend_type), left(regexp_replace(query, '\\s+', ' ', 'g'), 120)) as line
         from pg_stat_activity where datname = $1 and backend_type = 'client backend'`,
      [database],
    );
    return rows.map((row) => row.line);
  };
  let left: string[] = [];
  await waitFor(async () => (left = await open()).length === 0, { deadlineMs: 2_000 }).catch(() => {});
  return left;
}

/** `pool.end()` waits for clients that are out, for ever; a client that was never given back is reported as left open. */
async function endPool(pool: Pool): Promise<void> {
  if (pool.ended) return;
  let timer: NodeJS.Timeout | undefined;
  const patience = new Promise<void>((resolve) => (timer = setTimeout(resolve, 1_000)));
  await Promise.race([pool.end(), patience]);
  clearTimeout(timer);
}

async function asAdmin<T>(url: string, work: (admin: Client) => Promise<T>): Promise<T> {
  const admin = new Client({ connectionString: url, application_name: 'turnout test support' });
  await admin.connect();
  try {
    return await work(admin);
  } finally {
    await admin.end();
  }
}

function urlOf(url: string, database: string): string {
  const other = new URL(url);
  other.pathname = `/${database}`;
  return other.href;
}
