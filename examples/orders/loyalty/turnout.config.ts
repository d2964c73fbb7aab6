import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { defineConfig } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { joinPool } from 'turnout/pg';
import { required } from '../environment.ts';
import { loyaltyConsumer } from './consumers.ts';

const pool = joinPool(new Pool({ connectionString: required('DATABASE_URL'), max: 10 }));
const kafka = new Kafka({
  clientId: 'loyalty',
  brokers: required('KAFKA_BROKERS').split(','),
  logLevel: logLevel.NOTHING,
});

export default defineConfig({
  // When a process dies, others have its partitions six seconds later.
  broker: kafkaJs(kafka, { source: { sessionTimeoutMs: 6_000 } }),
  consumers: [loyaltyConsumer(pool, required('RELEASE'))],
  close: () => pool.end(),
});
