// Everything a run has: PostgreSQL and Kafka of its own, five databases, a bad network before each service, and the processes.
import { Kafka, logLevel } from 'kafkajs';
import type { Pool } from 'pg';
import { migrate, registerEvents } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { pgDatabase } from 'turnout/pg';
import { beginSwitchover } from '../../../src/cli/commands/begin-switchover.ts';
import type { Database as DatabasePort } from '../../../src/database/index.ts';
import { silentLogger } from '../../../src/lifecycle/index.ts';
import { createDatabase, freePort, startKafka, startPostgres } from '../../support/index.ts';
import type { Database, Kafka as KafkaPart, Postgres } from '../../support/index.ts';
import { openBadNetwork } from './bad-network.ts';
import type { BadNetwork, NetworkCounts } from './bad-network.ts';
import { fleet } from './fleet.ts';
import type { Fleet } from './fleet.ts';
import { events, services, source, switchoversTo, topic } from './services.ts';

export interface World {
  readonly postgres: Postgres;
  readonly kafka: KafkaPart;
  readonly shop: Pool;
  readonly database: DatabasePort;
  /** Of the services, by name. */
  readonly pools: Readonly<Record<string, Pool>>;
  readonly networks: Readonly<Record<string, BadNetwork>>;
  readonly shopUrls: readonly string[];
  readonly fleet: Fleet;
  networkCounts(): NetworkCounts;
  stop(): Promise<void>;
}

export async function startWorld({
  random,
  failpoints,
  say,
}: {
  random: () => number;
  failpoints: string | undefined;
  say: (text: string) => void;
}): Promise<World> {
  const [postgres, kafka] = await Promise.all([
    startPostgres({ restartable: true, durable: true }),
    startKafka({ restartable: true, settings: { 'group.initial.rebalance.delay.ms': '0' } }),
  ]);
  const processes = fleet(random, failpoints === undefined ? {} : { TURNOUT_FAILPOINTS: failpoints });
  const databases: Database[] = [];
  const networks: Record<string, BadNetwork> = {};
  const stop = async (): Promise<void> => {
    await processes.stop();
    await Promise.allSettled(Object.values(networks).map((network) => network.close()));
    await Promise.allSettled(databases.map((database) => database.drop()));
    await Promise.allSettled([postgres.stop(), kafka.stop()]);
  };
  try {
    const newDatabase = async (set: 'producer' | 'consumer', tables: string): Promise<{ url: string; pool: Pool }> => {
      const created = await createDatabase(postgres);
      databases.push(created);
      const pool = created.pool({ max: 4, connectionTimeoutMillis: 3_000 });
      await migrate(pgDatabase(pool), [set]);
      await pool.query(tables);
      return { url: created.url, pool };
    };
    const shop = await newDatabase(
      'producer',
      `create table customer (name text primary key, steps integer not null);
       create table ordered (customer text not null, step integer not null, primary key (customer, step))`,
    );
    const database = pgDatabase(shop.pool);
    await registerEvents(database, source, events);
    const broker = kafkaJs(new Kafka({ brokers: [...kafka.brokers], logLevel: logLevel.NOTHING }));
    await broker.topics().create([{ name: topic.name, partitions: topic.partitions }]);

    const pools: Record<string, Pool> = {};
    const urls: Record<string, string> = {};
    const starting: Promise<void>[] = [];
    const brokers = [...kafka.brokers];
    for (const { name, order, endpoints, consumers } of services) {
      const { url, pool } = await newDatabase(
        'consumer',
        `create table effect (id bigint generated always as identity, customer text not null, step integer not null, path text not null)`,
      );
      pools[name] = pool;
      const ports: number[] = [];
      for (let n = 1; n <= endpoints; n++) {
        const port = await freePort();
        ports.push(port);
        starting.push(processes.start('endpoint', `${name} endpoint ${n}`, { name, order, url, port }));
      }
      networks[name] = await openBadNetwork(ports, random);
      urls[name] = networks[name].url;
      for (let n = 1; n <= consumers; n++)
        starting.push(processes.start('consumer', `${name} consumer ${n}`, { name, url, brokers }));
    }
    const switchovers = switchoversTo(urls);
    for (const definition of switchovers)
      await beginSwitchover({
        source,
        database,
        definition,
        broker: broker.source(),
        reason: 'begins',
        logger: silentLogger,
        patienceMs: 60_000,
      });
    const shopPorts = [await freePort(), await freePort()];
    for (const [index, port] of shopPorts.entries())
      starting.push(processes.start('shop', `shop ${index + 1}`, { url: shop.url, port, urls }));
    for (const n of [1, 2]) starting.push(processes.start('run', `run ${n}`, { url: shop.url, brokers, urls }));
    say(`Starting ${starting.length} processes`);
    await Promise.all(starting);

    return {
      postgres,
      kafka,
      shop: shop.pool,
      database,
      pools,
      networks,
      shopUrls: shopPorts.map((port) => `http://127.0.0.1:${port}`),
      fleet: processes,
      networkCounts() {
        const total = { ...Object.values(networks)[0]!.counts };
        for (const { counts } of Object.values(networks).slice(1))
          for (const [name, count] of Object.entries(counts)) total[name as keyof NetworkCounts] += count;
        return total;
      },
      stop,
    };
  } catch (error) {
    for (const { name, output } of processes.outputs()) process.stderr.write(`--- ${name}\n${output.slice(-1_000)}\n`);
    await stop();
    throw error;
  }
}
