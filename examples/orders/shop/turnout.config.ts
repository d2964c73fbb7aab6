import { Kafka, logLevel } from 'kafkajs';
import { defineConfig } from 'turnout';
import { kafkaJs } from 'turnout/kafkajs';
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

export default defineConfig({
  source: 'shop',
  database: typeOrmDatabase(dataSource),
  broker: kafkaJs(kafka),
  events: [OrderPlaced, OrderChanged, OrderCancelled],
  switchovers: Object.values(
    switchoversTo({
      email: required('EMAIL_URL'),
      fulfilment: required('FULFILMENT_URL'),
      loyalty: required('LOYALTY_URL'),
    }),
  ),
  close: () => dataSource.destroy(),
});
