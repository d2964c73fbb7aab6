// PostgreSQL and Apache Kafka for one run of an example, with a database for each of two services.
import { Kafka, logLevel } from 'kafkajs';
import type { Pool } from 'pg';
import { migrate } from 'turnout';
import { pgDatabase } from 'turnout/pg';
import { createDatabase, startKafka, startPostgres, uniqueName } from '../test/support/index.ts';
import type { Database } from '../test/support/index.ts';

export interface Parts {
  readonly kafka: Kafka;
  readonly orders: Database;
  readonly mail: Database;
  stop(): Promise<void>;
}

/** Starts private parts; what fails is ended again. */
export async function startParts(): Promise<Parts> {
  const endings: (() => Promise<unknown>)[] = [];
  const stop = async (): Promise<void> => {
    for (const end of endings.splice(0).reverse()) await end();
  };
  const starting = [
    startPostgres().then((postgres) => (endings.push(() => postgres.stop()), postgres)),
    startKafka().then((kafka) => (endings.push(() => kafka.stop()), kafka)),
  ] as const;
  await Promise.allSettled(starting);
  try {
    const [postgres, { brokers }] = await Promise.all(starting);
    const [orders, mail] = [await createDatabase(postgres), await createDatabase(postgres)];
    endings.push(
      () => orders.drop(),
      () => mail.drop(),
    );
    await prepare(orders.pool({ max: 2 }), mail.pool({ max: 2 }));
    const kafka = new Kafka({ clientId: uniqueName('example'), brokers: [...brokers], logLevel: logLevel.NOTHING });
    return { kafka, orders, mail, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** What a deployment does: Turnout's tables, and those that the services always had. */
async function prepare(orders: Pool, mail: Pool): Promise<void> {
  await migrate(pgDatabase(orders), ['producer']);
  await migrate(pgDatabase(mail), ['consumer']);
  await orders.query(`
    create table customer (id text primary key, orders integer not null);
    create table "order" (id uuid primary key, customer_id text not null references customer, number integer not null,
      item text not null)`);
  await mail.query(`
    create table mail (id bigint generated always as identity primary key, order_id uuid not null, customer_id text not null,
      number integer not null, recipient text not null, subject text not null)`);
}
