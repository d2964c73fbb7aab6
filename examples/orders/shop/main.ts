import { createTurnout, jsonLogger } from 'turnout';
import { typeOrmDatabase } from 'turnout/typeorm';
import { required } from '../environment.ts';
import { serve } from '../serve.ts';
import { shopApp } from './app.ts';
import { connect } from './database.ts';
import { orderBook } from './orders.ts';
import { switchoversTo } from './switchovers.ts';

const dataSource = await connect(required('DATABASE_URL'));
const switchovers = switchoversTo({
  email: required('EMAIL_URL'),
  fulfilment: required('FULFILMENT_URL'),
  loyalty: required('LOYALTY_URL'),
});
const turnout = createTurnout({
  source: 'shop',
  database: typeOrmDatabase(dataSource),
  switchovers: Object.values(switchovers),
  logger: jsonLogger,
});

await serve('shop', shopApp(orderBook(turnout), switchovers), Number(required('PORT')), async () => {
  await turnout.close();
  await dataSource.destroy();
});
