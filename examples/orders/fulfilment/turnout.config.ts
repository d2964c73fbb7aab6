import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { defineConfig } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { joinPool } from 'turnout/pg';
import { required } from '../environment.ts';
import { fulfilmentConsumer } from './consumers.ts';

const pool = joinPool(new Pool({ connectionString: required('DATABASE_URL'), max: 20 }));
const kafka = new Kafka({
  clientId: 'fulfilment',
  brokers: required('KAFKA_BROKERS').split(','),
  logLevel: logLevel.NOTHING,
});

export default defineConfig({
  broker: kafkaJs(kafka),
  consumers: [fulfilmentConsumer(pool)],
  close: () => pool.end(),
});
