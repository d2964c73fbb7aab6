import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { TurnoutError } from '../errors/index.ts';

/**
 * `producer` for databases with an outbox, `consumer` for those with an inbox, both for those with both. `roles` grants
 * rights for what is installed; it is the only set that is applied anew each time it is asked for.
 */
export type MigrationSet = 'producer' | 'consumer' | 'roles';

/** One file of `migrations/`. */
export interface MigrationFile {
  readonly set: MigrationSet;
  /** Set and file: `producer/000001_outbox`. */
  readonly name: string;
  readonly sql: string;
  /** SHA-256 of the text with line ends as `\n`, in hexadecimal. */
  readonly checksum: string;
  /** What a database has once the file was applied, however that was done. */
  readonly creates: readonly DatabaseObject[];
}

export interface DatabaseObject {
  readonly kind: 'relation' | 'function';
  readonly name: string;
}

const order: readonly MigrationSet[] = ['producer', 'consumer', 'roles'];

/** The files of the sets named, in the order in which they are applied. */
export function migrationFiles(sets: readonly MigrationSet[]): MigrationFile[] {
  const folder = migrationsFolder();
  return order
    .filter((set) => sets.includes(set))
    .flatMap((set) =>
      readdirSync(join(folder, set))
        .filter((file) => file.endsWith('.sql'))
        .sort()
        .map((file) => migrationFile(set, file, readFileSync(join(folder, set, file), 'utf8'))),
    );
}

/** Reads one file; pure. */
export function migrationFile(set: MigrationSet, file: string, text: string): MigrationFile {
  const sql = text.replace(/\r\n?/g, '\n');
  return {
    set,
    name: `${set}/${file.replace(/\.sql$/, '')}`,
    sql,
    checksum: createHash('sha256').update(sql).digest('hex'),
    creates: createdObjects(sql),
  };
}

const creates = /^create (?:unique )?(table|index|view|function)\s+(?!if\b)(?:turnout\.)?(\w+)/gm;

// `create or replace` and `if not exists` don't match: such an object proves nothing, it may have been there before.
function createdObjects(sql: string): DatabaseObject[] {
  return [...sql.matchAll(creates)].map(([, kind, name]) => ({
    kind: kind === 'function' ? 'function' : 'relation',
    name: name!,
  }));
}

// From src/database and from dist/src/database alike: the package root is the first folder above that has them.
function migrationsFolder(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (;;) {
    const candidate = join(folder, 'migrations');
    if (existsSync(join(candidate, 'producer', '000001_outbox.sql'))) return candidate;
    const above = dirname(folder);
    if (above === folder) {
      throw new TurnoutError(
        'TURNOUT_MIGRATION_MISSING',
        'The folder migrations/ of the package turnout is not there.',
      );
    }
    folder = above;
  }
}
