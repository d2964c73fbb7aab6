import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { jsonLogger, runConsumer } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { joinPool } from 'turnout/pg';
import { required } from '../environment.ts';
import { serve } from '../serve.ts';
import { fulfilmentApp } from './app.ts';
import { fulfilmentConsumer } from './consumers.ts';

const pool = joinPool(new Pool({ connectionString: required('DATABASE_URL'), max: 20 }));
const kafka = new Kafka({
  clientId: 'fulfilment',
  brokers: required('KAFKA_BROKERS').split(','),
  logLevel: logLevel.NOTHING,
});

// HTTP and events in one process: a small service needs no second one.
const consumer = runConsumer(fulfilmentConsumer(pool), { source: kafkaJs(kafka).source(), logger: jsonLogger });
await consumer.start();
await serve('fulfilment', fulfilmentApp(pool), Number(required('PORT')), async () => {
  await consumer.stop();
  await pool.end();
});
