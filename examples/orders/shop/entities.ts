import { EntitySchema } from 'typeorm';

export interface Customer {
  id: string;
  email: string;
  changes: number;
}

export interface OrderRow {
  id: string;
  customerId: string;
  item: string;
  quantity: number;
  totalCents: number;
  status: 'placed' | 'cancelled';
  version: number;
}

export const CustomerEntity = new EntitySchema<Customer>({
  name: 'customer',
  columns: {
    id: { type: 'text', primary: true },
    email: { type: 'text' },
    changes: { type: 'integer' },
  },
});

export const OrderEntity = new EntitySchema<OrderRow>({
  name: 'order',
  columns: {
    id: { type: 'uuid', primary: true },
    customerId: { name: 'customer_id', type: 'text' },
    item: { type: 'text' },
    quantity: { type: 'integer' },
    totalCents: { name: 'total_cents', type: 'integer' },
    status: { type: 'text' },
    version: { type: 'integer' },
  },
});
