import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { defineConfig } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { joinPool } from 'turnout/pg';
import { required } from '../environment.ts';
import { emailConsumer } from './consumers.ts';
import { mailboxOn } from './mailbox.ts';

const pool = joinPool(new Pool({ connectionString: required('DATABASE_URL'), max: 10 }));
const kafka = new Kafka({
  clientId: 'email',
  brokers: required('KAFKA_BROKERS').split(','),
  logLevel: logLevel.NOTHING,
});

export default defineConfig({
  broker: kafkaJs(kafka),
  consumers: [emailConsumer(pool, mailboxOn(pool), required('RELEASE'))],
  close: () => pool.end(),
});
