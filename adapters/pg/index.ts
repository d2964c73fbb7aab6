export { pgDatabase } from './database.ts';
export type { ClientOf } from './database.ts';
export { joinPool } from './join-pool.ts';
export type { PoolClientLike, PoolLike } from './pool.ts';
