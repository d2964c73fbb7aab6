// What `turnout run` is made of, with less patience: relay, sweeper and partitions. Argument: {url, brokers, urls}. Writes `ready`.
import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { createRelay, jsonLogger, outboxKeeper, rpcSweeper, together } from 'turnout';
import { kafkaJsPublisher } from 'turnout/kafkajs';
import { pgDatabase } from 'turnout/pg';
import { source, switchoversTo } from './services.ts';

const { url, brokers, urls } = JSON.parse(process.argv[2] ?? '{}') as {
  url: string;
  brokers: string[];
  urls: Record<string, string>;
};
const database = pgDatabase(new Pool({ connectionString: url, max: 10, connectionTimeoutMillis: 3_000 }));
const kafka = new Kafka({ clientId: 'relay', brokers, logLevel: logLevel.NOTHING });
const logger = jsonLogger;
const service = together('run', [
  outboxKeeper({ database, logger }),
  createRelay({ database, publisher: kafkaJsPublisher(kafka), logger, takeoverMs: 3_000 }),
  rpcSweeper({
    source,
    database,
    switchovers: switchoversTo(urls),
    logger,
    pollMs: 250,
    retry: { attempts: Number.POSITIVE_INFINITY, firstDelayMs: 200, maxDelayMs: 2_000, uncertainDelayMs: 1_000 },
  }),
]);
await service.start();
process.stdout.write('ready\n');
process.stdout.write(`halted ${String(await service.failed())}\n`);
