// A producer's database for tests: migrated, with one source and one topic registered.
import { Pool } from 'pg';
import { pgDatabase } from '../../adapters/pg/index.ts';
import { migrate } from '../../src/database/index.ts';
import type { DatabaseTemplate } from './database.ts';

/** A database with the producer's migrations and nothing else. */
export const producerTemplate: DatabaseTemplate = {
  key: 'producer migrations',
  async prepare(url) {
    const pool = new Pool({ connectionString: url });
    try {
      await migrate(pgDatabase(pool), ['producer']);
    } finally {
      await pool.end();
    }
  },
};
