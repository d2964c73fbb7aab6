export { bindDataSource } from './connections.ts';
export { typeOrmDatabase } from './database.ts';
export type { TypeOrmDatabase } from './database.ts';
export { turnoutMigrations } from './migrations.ts';
export type { MigrationLike, MigrationRunnerLike } from './migrations.ts';
export type { DataSourceLike, EntityManagerLike, QueryRunnerLike } from './types.ts';
