import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { defineConfig } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { required } from '../environment.ts';
import { analyticsConsumer } from './consumers.ts';

const pool = new Pool({ connectionString: required('DATABASE_URL'), max: 5 });
const kafka = new Kafka({
  clientId: 'analytics',
  brokers: required('KAFKA_BROKERS').split(','),
  logLevel: logLevel.NOTHING,
});

export default defineConfig({
  broker: kafkaJs(kafka),
  consumers: [analyticsConsumer(pool)],
  close: () => pool.end(),
});
