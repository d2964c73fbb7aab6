export { hasFailed, orUnreachable, sessionOf, takeClient } from './client.ts';
export type { ClientLike, ClientPool, ClientResult, TakenClient } from './client.ts';
export type { Database, Queryable, QueryResultLike, Rehearsed, Session } from './database.ts';
export { abandoning, joinableTransaction, joinedClient, rehearseIn, whenStandInEnded } from './joining.ts';
export type { Handed, JoinableOptions } from './joining.ts';
export { applyMigration, migrate, migrationScript, requireMigrations } from './migrate.ts';
export type { AppliedMigration } from './migrate.ts';
export { migrationFiles } from './migration-files.ts';
export type { MigrationFile, MigrationSet } from './migration-files.ts';
