import type { MigrationFile, MigrationSet, Queryable } from '../../src/database/index.ts';
import { applyMigration, migrationFiles } from '../../src/database/index.ts';
import { TurnoutError } from '../../src/errors/index.ts';

/** What Turnout uses of the query runner that TypeORM hands to a migration. */
export interface MigrationRunnerLike {
  query(sql: string, parameters?: unknown[]): Promise<unknown>;
}

/** A `MigrationInterface` of TypeORM. */
export interface MigrationLike {
  readonly name: string;
  up(queryRunner: MigrationRunnerLike): Promise<void>;
  down(queryRunner: MigrationRunnerLike): Promise<void>;
}

// TypeORM orders migrations by the 13 digits at the end of their names. These are from before anybody's first migration
// with Turnout, and never change.
const firstTimestamp = 1_764_000_000_000;
const offsetOf: Record<MigrationSet, number> = { producer: 0, consumer: 1_000_000, roles: 2_000_000 };

/**
 * Turnout's migrations as classes for the `migrations` of a `DataSource`. They record themselves as `turnout migrate`
 * does, and do nothing where that has run. They have no way down.
 *
 * @example
 * new DataSource({ type: 'postgres', migrations: [...turnoutMigrations(['producer']), 'migrations/*.js'] });
 */
export function turnoutMigrations(sets: readonly MigrationSet[]): (new () => MigrationLike)[] {
  return migrationFiles(sets).map((file) => {
    const name = migrationName(file);
    // TypeORM takes classes, and tells them apart by `name`.
    return class implements MigrationLike {
      readonly name = name;
      async up(queryRunner: MigrationRunnerLike): Promise<void> {
        await applyMigration(queryableOf(queryRunner), file);
      }
      async down(): Promise<void> {
        throw new TurnoutError(
          'TURNOUT_MIGRATION_FAILED',
          `Migration ${file.name} has no way down: it would delete events.`,
        );
      }
    };
  });
}

function migrationName({ set, name }: MigrationFile): string {
  const number = Number(/\d+/.exec(name)?.[0]);
  const words = name.replace(/^\w+\/\d+_/, '').split('_');
  const title = [set, ...words].map((word) => word[0]!.toUpperCase() + word.slice(1)).join('');
  return `Turnout${title}${firstTimestamp + offsetOf[set] + number}`;
}

function queryableOf(queryRunner: MigrationRunnerLike): Queryable {
  return {
    async query<Row>(text: string, values?: unknown[]) {
      const rows: unknown = await queryRunner.query(text, values);
      // What TypeORM gives for other statements than selects has no rows.
      return { rows: Array.isArray(rows) ? (rows as Row[]) : [], rowCount: null };
    },
  };
}
