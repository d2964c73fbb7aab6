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
    // What a migration locks is its own and new. Should that ever be wrong, it fails before a queue forms behind it.
    await connection.query("set local lock_timeout = '5s'");
    await connection.query(bookkeeping);
    const recorded = (await recordedMigrations(connection)).get(name);
    if (set !== 'roles') {
      if (recorded === file.checksum) return undefined;
      if (recorded !== undefined) throw changed(name);
    }
    const adopted = set !== 'roles' && (await isApplied(connection, file));
    if (!adopted) await connection.query(file.sql);
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

const recordStatement = `insert into turnout.migration (name, checksum) values ($1, $2)
  on conflict (name) do update set checksum = excluded.checksum, applied_at = clock_timestamp()`;

/**
 * Checks that a database has every migration of a set, whoever applied it and how.
 * Throws TURNOUT_MIGRATION_MISSING, TURNOUT_MIGRATION_CHANGED, TURNOUT_DATABASE_NEWER, TURNOUT_DATABASE_UNREACHABLE.
 */
export async function requireMigrations(database: Database, set: MigrationSet): Promise<void> {
  const files = migrationFiles([set]);
  const session = await database.connect();
  try {
    const state = compare(files, await recordedMigrations(session));
    if (state.problem !== undefined) throw state.problem;
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
  readonly problem: TurnoutError | undefined;
}

/** What is recorded against what there is; pure. Sets that were not asked for are left alone. */
export function compare(files: readonly MigrationFile[], recorded: ReadonlyMap<string, string>): Comparison {
  const sets = new Set(files.map((file) => file.set));
  const known = new Set(files.map((file) => file.name));
  const unknown = [...recorded.keys()].filter(
    (name) => sets.has(name.split('/')[0] as MigrationSet) && !known.has(name),
  );
  if (unknown.length > 0) {
    const problem = new TurnoutError(
      'TURNOUT_DATABASE_NEWER',
      `The database has migrations that are not known here: ${unknown.join(', ')}.`,
      {
        details: { unknown },
      },
    );
    return { pending: [], problem };
  }
  const pending: MigrationFile[] = [];
  for (const file of files) {
    const checksum = recorded.get(file.name);
    if (checksum === undefined || file.set === 'roles') pending.push(file);
    else if (checksum !== file.checksum) return { pending: [], problem: changed(file.name) };
  }
  return { pending, problem: undefined };
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
