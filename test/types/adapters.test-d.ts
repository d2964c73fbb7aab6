import type { PoolClient } from 'pg';
import { Pool } from 'pg';
import type { EntityManager, QueryRunner } from 'typeorm';
import { DataSource } from 'typeorm';
import type { MigrationInterface } from 'typeorm';
import { expectTypeOf, test } from 'vitest';
import type { PoolClientLike, PoolLike } from 'turnout/pg';
import { joinPool, pgDatabase } from 'turnout/pg';
import type { DataSourceLike, EntityManagerLike, QueryRunnerLike, TypeOrmDatabase } from 'turnout/typeorm';
import { bindDataSource, turnoutMigrations, typeOrmDatabase } from 'turnout/typeorm';
import type { Database, Queryable } from '../../src/database/index.ts';

declare function infer<Tx>(database: Database<Tx>): Tx;

const pool = new Pool();
const dataSource = new DataSource({ type: 'postgres' });

test('the library’s own objects fit as they are', () => {
  expectTypeOf<Pool>().toExtend<PoolLike>();
  expectTypeOf<PoolClient>().toExtend<PoolClientLike>();
  expectTypeOf<PoolClient>().toExtend<Queryable>();
  expectTypeOf<DataSource>().toExtend<DataSourceLike<EntityManager>>();
  expectTypeOf<EntityManager>().toExtend<EntityManagerLike>();
  expectTypeOf<QueryRunner>().toExtend<QueryRunnerLike<EntityManager>>();
});

test('a database hands out what the user’s library calls a transaction', () => {
  expectTypeOf(pgDatabase(pool)).toEqualTypeOf<Database<PoolClient>>();
  expectTypeOf(typeOrmDatabase(dataSource)).toEqualTypeOf<TypeOrmDatabase<EntityManager>>();
  expectTypeOf(infer(typeOrmDatabase(dataSource))).toEqualTypeOf<EntityManager>();
  expectTypeOf(infer(pgDatabase(pool))).toEqualTypeOf<PoolClient>();
  void pgDatabase(pool).transaction(async (tx) => expectTypeOf(tx).toEqualTypeOf<PoolClient>());
  void typeOrmDatabase(dataSource).transaction(async (tx) => expectTypeOf(tx).toEqualTypeOf<EntityManager>());
});

test('a pool with other types than those of pg does too', () => {
  interface OwnClient extends PoolClientLike {
    readonly own: 'client';
  }
  const own = {} as { connect(): Promise<OwnClient>; query: PoolLike['query'] };
  expectTypeOf(pgDatabase(own)).toEqualTypeOf<Database<OwnClient>>();
});

test('joining keeps the type', () => {
  expectTypeOf(joinPool(pool)).toEqualTypeOf<Pool>();
  expectTypeOf(bindDataSource(dataSource)).toEqualTypeOf<DataSource>();
});

test('transactions in which something can be published', () => {
  const pg = pgDatabase(pool);
  const orm = typeOrmDatabase(dataSource);
  pg.within({} as PoolClient);
  orm.within({} as EntityManager);
  orm.within({} as QueryRunner);
  // @ts-expect-error A pool has no transaction.
  pg.within(pool);
});

test('migrations are what TypeORM expects', () => {
  expectTypeOf(turnoutMigrations(['producer'])).toExtend<(new () => MigrationInterface)[]>();
});
