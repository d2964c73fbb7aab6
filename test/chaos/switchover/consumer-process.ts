// One process of a consumer. Argument: {name, url, brokers}. Writes `ready`.
import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { jsonLogger, runConsumer } from 'turnout';
import { kafkaJsSource } from 'turnout/kafkajs';
import { consumerOf } from './consumer.ts';

const { name, url, brokers } = JSON.parse(process.argv[2] ?? '{}') as { name: string; url: string; brokers: string[] };
const pool = new Pool({ connectionString: url, max: 8, connectionTimeoutMillis: 3_000 });
const kafka = new Kafka({ clientId: name, brokers, logLevel: logLevel.NOTHING });
const consumer = runConsumer(consumerOf(name, pool), {
  source: kafkaJsSource(kafka, { sessionTimeoutMs: 6_000 }),
  logger: jsonLogger,
});
await consumer.start();
process.stdout.write('ready\n');
const error = await consumer.failed();
// One that has to halt says why: the run is judged by that too.
process.stdout.write(`halted ${String(error)}\n`);
