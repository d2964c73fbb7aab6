import { Kafka, logLevel } from 'kafkajs';
import { Pool } from 'pg';
import { defineConfig, webhook } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
import { pgDatabase } from 'turnout/pg';
import { typeOrmDatabase } from 'turnout/typeorm';
import { required } from '../environment.ts';
import { OrderCancelled, OrderChanged, OrderPlaced } from '../events.ts';
import { connect } from './database.ts';
import { switchoversTo } from './switchovers.ts';

const dataSource = await connect(required('DATABASE_URL'));
const kafka = new Kafka({
  clientId: 'shop',
  brokers: required('KAFKA_BROKERS').split(','),
  logLevel: logLevel.NOTHING,
});

// Where checks and guardrails look whether a consumer does well. In real life: logins with turnout_reader, no more.
const looking = {
  email: new Pool({ connectionString: required('EMAIL_DATABASE_URL'), max: 2 }),
  fulfilment: new Pool({ connectionString: required('FULFILMENT_DATABASE_URL'), max: 2 }),
  loyalty: new Pool({ connectionString: required('LOYALTY_DATABASE_URL'), max: 2 }),
};

export default defineConfig({
  source: 'shop',
  database: typeOrmDatabase(dataSource),
  broker: kafkaJs(kafka),
  events: [OrderPlaced, OrderChanged, OrderCancelled],
  switchovers: Object.values(
    switchoversTo(
      {
        email: required('EMAIL_URL'),
        fulfilment: required('FULFILMENT_URL'),
        loyalty: required('LOYALTY_URL'),
      },
      { guarded: process.env['GUARDRAILS'] !== 'off' },
    ),
  ),
  consumerDatabases: {
    email: pgDatabase(looking.email),
    fulfilment: pgDatabase(looking.fulfilment),
    loyalty: pgDatabase(looking.loyalty),
  },
  onAlert: webhook(required('ALERTS_URL')),
  close: async () => {
    await Promise.all([dataSource.destroy(), ...Object.values(looking).map((pool) => pool.end())]);
  },
});
