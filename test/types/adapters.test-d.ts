import type { PoolClient } from 'pg';
import { Pool } from 'pg';
import type { EntityManager, QueryRunner } from 'typeorm';
import { DataSource } from 'typeorm';
import type { MigrationInterface } from 'typeorm';
import { expectTypeOf, test } from 'vitest';
import { z } from 'zod';
import type { PoolClientLike, PoolLike } from 'turnout/pg';
import { joinPool, pgDatabase } from 'turnout/pg';
import type { DataSourceLike, EntityManagerLike, QueryRunnerLike, TypeOrmDatabase } from 'turnout/typeorm';
import { bindDataSource, turnoutMigrations, typeOrmDatabase } from 'turnout/typeorm';
import { defineEvent } from '../../src/event/index.ts';
import { createTurnout, type Turnout } from '../../src/turnout.ts';
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

test('publish takes them', () => {
  const OrderPlaced = defineEvent({
    name: 'orders.placed',
    version: 1,
    topic: 'orders',
    schema: z.object({ id: z.string() }),
    key: (order) => order.id,
  });
  const pg = createTurnout({ source: 'orders', database: pgDatabase(pool) });
  const orm = createTurnout({ source: 'orders', database: typeOrmDatabase(dataSource) });
  expectTypeOf(pg).toEqualTypeOf<Turnout<PoolClient>>();
  void orm.transaction(async (tx) => {
    expectTypeOf(tx).toEqualTypeOf<EntityManager>();
    await orm.publish(tx, OrderPlaced, { id: '1' });
  });
  void orm.publish({} as QueryRunner, OrderPlaced, { id: '1' });
  // @ts-expect-error The data is not that of the event.
  void pg.publish({} as PoolClient, OrderPlaced, { id: 1 });
  // @ts-expect-error Not a transaction.
  void pg.publish(pool, OrderPlaced, { id: '1' });
  // One that takes more serves where less is asked for.
  expectTypeOf(orm).toExtend<Turnout<EntityManager>>();
});

test('migrations are what TypeORM expects', () => {
  expectTypeOf(turnoutMigrations(['producer'])).toExtend<(new () => MigrationInterface)[]>();
});
