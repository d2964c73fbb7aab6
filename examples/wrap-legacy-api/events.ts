import { defineEvent, defineTopic } from 'turnout';
import { z } from 'zod';

export const OrderPlaced = defineEvent({
  name: 'shop.order-placed',
  version: 1,
  topic: defineTopic({ name: 'legacy-shop', partitions: 3 }),
  schema: z.object({ orderId: z.string(), item: z.string() }),
  key: (order) => order.orderId,
});

export const ParcelScanned = defineEvent({
  name: 'warehouse.parcel-scanned',
  version: 1,
  topic: defineTopic({ name: 'legacy-warehouse', partitions: 3 }),
  schema: z.object({ parcelId: z.string() }),
  key: (parcel) => parcel.parcelId,
});
