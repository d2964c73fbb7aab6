import { Pool } from 'pg';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { migrate, type MigrationSet } from '../../src/database/index.ts';
import type { DatabaseTemplate } from './database.ts';

/**
 * A template with Turnout's migrations.
 *
 * @example
 * const { pool } = await database({ template: migrated('producer') });
 */
export function migrated(...sets: readonly MigrationSet[]): DatabaseTemplate {
  return {
    key: `migrated ${sets.join(' ')}`,
    async prepare(url) {
      const pool = new Pool({ connectionString: url, max: 1 });
      try {
        await migrate(pgDatabase(pool), sets);
      } finally {
        await pool.end();
      }
    },
  };
}
