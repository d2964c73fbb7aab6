import { TurnoutError } from '../errors/index.ts';
import type { Database, Queryable } from './database.ts';
import type { DatabaseObject, MigrationFile, MigrationSet } from './migration-files.ts';
import { migrationFiles } from './migration-files.ts';

/** What {@link migrate} did, or with `dryRun` would do, with one file. */
export interface AppliedMigration {
  readonly name: string;
  readonly set: MigrationSet;
  /** `adopted`: it had been applied by hand, and was only recorded. `pending`: with `dryRun`. */
  readonly state: 'applied' | 'adopted' | 'pending';
}

const bookkeeping = `create schema if not exists turnout;
create table if not exists turnout.migration (
  name       text primary key,
  checksum   text not null,
  applied_at timestamptz not null default clock_timestamp()
);
revoke all on turnout.migration from public;
`;

/**
 * Brings a database up to date with the migration sets named, each file in a transaction of its own. May run in several
 * processes at once: they take turns. Gives what it did; nothing if the database was up to date.
 * Throws TURNOUT_MIGRATION_CHANGED, TURNOUT_DATABASE_NEWER (both before anything is done), TURNOUT_MIGRATION_FAILED,
 * TURNOUT_DATABASE_UNREACHABLE.
 *
 * @example
 * await migrate(pgDatabase(pool), ['producer', 'roles']);
 */
export async function migrate(
  database: Database,
  sets: readonly MigrationSet[],
  options: { dryRun?: boolean } = {},
): Promise<AppliedMigration[]> {
  const files = migrationFiles(sets);
  const session = await database.connect();
  const done: AppliedMigration[] = [];
  try {
    const before = await recordedMigrations(session);
    const state = compare(files, before);
    if (state.problem !== undefined) throw state.problem;
    if (state.unknown.length > 0) throw newer(state.unknown);
    if (options.dryRun === true) return state.pending.map(({ name, set }) => ({ name, set, state: 'pending' }));
    for (const file of state.pending) {
      await session.query('begin');
      try {
        const applied = await applyMigration(session, file);
        await session.query('commit');
        if (applied !== undefined) done.push(applied);
      } catch (error) {
        await session.query('rollback').catch(() => undefined);
        throw error;
      }
    }
    return done;
  } finally {
    session.release();
  }
}

/**
 * Applies one file in the transaction that is open on `connection`, unless that has been done. For migrators of others;
 * throws like {@link migrate}.
 */
export async function applyMigration(
  connection: Queryable,
  file: MigrationFile,
): Promise<AppliedMigration | undefined> {
  const { name, set } = file;
  try {
    // Held to the end of the transaction, so it works behind a pooler too; whoever comes second finds the work done.
    await connection.query("select pg_advisory_xact_lock(hashtextextended('turnout.migrate', 0))");
    await connection.query(bookkeeping);
    const recorded = (await recordedMigrations(connection)).get(name);
    if (set !== 'roles') {
      if (recorded === file.checksum) return undefined;
      if (recorded !== undefined) throw changed(name);
    }
    const adopted = set !== 'roles' && (await isApplied(connection, file));
    if (!adopted) await givingWay(connection, () => connection.query(file.sql));
    await connection.query(recordStatement, [name, file.checksum]);
    return { name, set, state: adopted ? 'adopted' : 'applied' };
  } catch (error) {
    if (error instanceof TurnoutError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new TurnoutError('TURNOUT_MIGRATION_FAILED', `Migration ${name} failed: ${reason}.`, {
      details: { migration: name },
      cause: error,
    });
  }
}

/** How long others may have to wait behind a migration that waits for a lock itself, and how long it then leaves them alone. */
const lockTimeoutMs = 500;
const pauseMs = 500;
const maxTries = 60;

/**
 * An `alter table` that waits for one long transaction makes everybody wait who comes after it. So it waits a moment only, takes back
 * what it did, locks included, lets the others go on, and tries again. Its transaction stays open, for migrators of others.
 */
async function givingWay(connection: Queryable, apply: () => Promise<unknown>): Promise<void> {
  const { rows } = await connection.query<{ before: string }>("select current_setting('lock_timeout') as before");
  await connection.query(`set local lock_timeout = ${lockTimeoutMs}`);
  await connection.query('savepoint turnout_migration');
  for (let tries = 1; ; tries++) {
    try {
      await apply();
      await connection.query('release savepoint turnout_migration');
      await connection.query("select set_config('lock_timeout', $1, true)", [rows[0]!.before]);
      return;
    } catch (error) {
      if (tries === maxTries || !isGivenWay(error)) throw error;
    }
    await connection.query('rollback to savepoint turnout_migration');
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

/** A lock that was not there in time, or a deadlock that the migration was to end. TypeORM keeps PostgreSQL's error one level below. */
function isGivenWay(error: unknown): boolean {
  const { code, driverError } = error as { code?: unknown; driverError?: { code?: unknown } };
  return ['55P03', '40P01'].includes(String(code ?? driverError?.code));
}

const recordStatement = `insert into turnout.migration (name, checksum) values ($1, $2)
  on conflict (name) do update set checksum = excluded.checksum, applied_at = clock_timestamp()`;

/**
 * Checks that a database has every migration of a set, whoever applied it and how. Newer ones, of a version that is being
 * rolled out, are told to `logger` and accepted: they only add. Unless they say by their name that they break what is older.
 * Throws TURNOUT_MIGRATION_MISSING, TURNOUT_MIGRATION_CHANGED, TURNOUT_DATABASE_NEWER, TURNOUT_DATABASE_UNREACHABLE.
 *
 * @example
 * await requireMigrations(database, 'consumer', { logger: jsonLogger });
 */
export async function requireMigrations(
  database: Database,
  set: MigrationSet,
  options: { readonly logger?: Told } = {},
): Promise<void> {
  const files = migrationFiles([set]);
  const session = await database.connect();
  try {
    const state = compare(files, await recordedMigrations(session));
    if (state.problem !== undefined) throw state.problem;
    const breaking = state.unknown.filter(breaksOlder);
    if (breaking.length > 0) throw newer(breaking);
    tellNewer(database, state.unknown, options.logger);
    if (set === 'roles') return;
    const missing: string[] = [];
    for (const file of state.pending) if (!(await isApplied(session, file))) missing.push(file.name);
    if (missing.length === 0) return;
    throw new TurnoutError('TURNOUT_MIGRATION_MISSING', `The database lacks ${missing.join(', ')}.`, {
      details: { missing },
    });
  } finally {
    session.release();
  }
}

/**
 * The sets as one text of plain SQL, for other migrators and for `psql -1 -f`: the files, and what records them so
 * that `turnout migrate` knows them later.
 */
export function migrationScript(sets: readonly MigrationSet[]): string {
  const parts = migrationFiles(sets).map(
    ({ name, sql, checksum }) =>
      `-- ${name}\n\n${sql.trimEnd()}\n\ninsert into turnout.migration (name, checksum) values ('${name}', '${checksum}')\n` +
      `  on conflict (name) do update set checksum = excluded.checksum, applied_at = clock_timestamp();\n`,
  );
  return [bookkeeping, ...parts].join('\n');
}

interface Comparison {
  readonly pending: MigrationFile[];
  /** Names of these sets that are recorded and not known here: applied by a newer version. */
  readonly unknown: readonly string[];
  readonly problem: TurnoutError | undefined;
}

/** What is recorded against what there is; pure. Sets that were not asked for are left alone. */
export function compare(files: readonly MigrationFile[], recorded: ReadonlyMap<string, string>): Comparison {
  const sets = new Set(files.map((file) => file.set));
  const known = new Set(files.map((file) => file.name));
  const unknown = [...recorded.keys()].filter(
    (name) => sets.has(name.split('/')[0] as MigrationSet) && !known.has(name),
  );
  const pending: MigrationFile[] = [];
  for (const file of files) {
    const checksum = recorded.get(file.name);
    if (checksum === undefined || file.set === 'roles') pending.push(file);
    else if (checksum !== file.checksum) return { pending: [], unknown, problem: changed(file.name) };
  }
  return { pending, unknown, problem: undefined };
}

/**
 * Whether a migration of a newer version says that older versions can't go on: `consumer/000012_breaking_…`. All others only
 * add. A convention of names, because nothing else of a file is known to a version that came before it.
 */
export function breaksOlder(name: string): boolean {
  return /\/\d+_breaking_/.test(name);
}

function newer(unknown: readonly string[]): TurnoutError {
  return new TurnoutError(
    'TURNOUT_DATABASE_NEWER',
    `The database has migrations that are not known here: ${unknown.join(', ')}.`,
    { details: { unknown } },
  );
}

/** As of any logger. */
interface Told {
  info(message: string, fields?: Readonly<Record<string, unknown>>): void;
}

/** What was told of a database: services that share it, or connect again, need not say it each time. */
const told = new WeakMap<Database, string>();

function tellNewer(database: Database, unknown: readonly string[], logger: Told | undefined): void {
  const migrations = unknown.join(', ');
  if (logger === undefined || migrations === '' || told.get(database) === migrations) return;
  told.set(database, migrations);
  logger.info('The database has migrations of a newer version, which only add; this one goes on.', { migrations });
}

function changed(name: string): TurnoutError {
  return new TurnoutError(
    'TURNOUT_MIGRATION_CHANGED',
    `Migration ${name} is not the one that was applied to this database.`,
    {
      details: { migration: name },
    },
  );
}

async function recordedMigrations(connection: Queryable): Promise<Map<string, string>> {
  const exists = await connection.query("select from pg_class where oid = to_regclass('turnout.migration')");
  if (exists.rows.length === 0) return new Map();
  const { rows } = await connection.query<{ name: string; checksum: string }>(
    'select name, checksum from turnout.migration order by name',
  );
  return new Map(rows.map((row) => [row.name, row.checksum]));
}

/** Whether a file was applied by hand: all that it creates is there. Some of it only is an error. */
async function isApplied(connection: Queryable, file: MigrationFile): Promise<boolean> {
  const { rows } = await connection.query<{ name: string }>(
    `select c.relname::text as name, 'relation' as kind from pg_class c
       where c.relnamespace = to_regnamespace('turnout') and c.relname = any ($1)
     union all
     select distinct p.proname::text, 'function' from pg_proc p
       where p.pronamespace = to_regnamespace('turnout') and p.proname = any ($2)`,
    [namesOf(file.creates, 'relation'), namesOf(file.creates, 'function')],
  );
  if (rows.length === 0 || file.creates.length === 0) return false;
  const there = new Set(rows.map((row) => row.name));
  const missing = file.creates.filter((object) => !there.has(object.name));
  if (missing.length === 0) return true;
  throw new TurnoutError(
    'TURNOUT_MIGRATION_FAILED',
    `Migration ${file.name} was applied in part: ${missing.map((object) => `turnout.${object.name}`).join(', ')} ${missing.length === 1 ? 'is' : 'are'} missing.`,
    { details: { migration: file.name, missing: missing.map((object) => object.name) } },
  );
}

function namesOf(objects: readonly DatabaseObject[], kind: DatabaseObject['kind']): string[] {
  return objects.filter((object) => object.kind === kind).map((object) => object.name);
}
