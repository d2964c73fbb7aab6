import { DataSource } from 'typeorm';
import { CustomerEntity, OrderEntity } from './entities.ts';

export function connect(url: string): Promise<DataSource> {
  return new DataSource({
    type: 'postgres',
    url,
    entities: [CustomerEntity, OrderEntity],
    poolSize: 20,
  }).initialize();
}
