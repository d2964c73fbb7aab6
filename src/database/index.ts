export type { Database, Queryable, QueryResultLike, Session } from './database.ts';
