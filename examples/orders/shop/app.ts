import express from 'express';
import type { Express } from 'express';
import { z } from 'zod';
import { OrderClosed } from './orders.ts';
import type { OrderBook } from './orders.ts';
import type { Switchovers } from './switchovers.ts';

const newOrder = z.object({
  customerId: z.string().min(1),
  email: z.email(),
  item: z.string().min(1),
  quantity: z.int().min(1).max(100),
});
const change = z.object({ quantity: z.int().min(1).max(100) });

/** The shop's HTTP interface. */
export function shopApp(orders: OrderBook, { loyalty }: Switchovers): Express {
  const app = express();
  app.use(express.json());

  app.post('/orders', async (request, response) => {
    const wanted = newOrder.safeParse(request.body);
    if (!wanted.success) return void response.status(400).json({ error: z.prettifyError(wanted.error) });
    const { orderId, published } = await orders.place(wanted.data);
    // The shop shows the new balance if loyalty answers soon, as it always did. The order stands either way.
    const points = await published.reply(loyalty, { timeoutMs: 300 });
    response
      .status(201)
      .json({ orderId, points: points.route === 'rpc' && points.status === 'done' ? points.reply.body : null });
  });

  app.patch('/orders/:id', async (request, response) => {
    const wanted = change.safeParse(request.body);
    if (!wanted.success) return void response.status(400).json({ error: z.prettifyError(wanted.error) });
    const changed = await orders.change(request.params.id, wanted.data.quantity);
    if (changed === undefined) response.status(404).end();
    else response.status(204).end();
  });

  app.post('/orders/:id/cancel', async (request, response) => {
    const cancelled = await orders.cancel(request.params.id);
    if (cancelled === undefined) response.status(404).end();
    else response.status(204).end();
  });

  app.use((error: unknown, _request: express.Request, response: express.Response, next: express.NextFunction) => {
    if (response.headersSent) return next(error);
    if (error instanceof OrderClosed) return void response.status(409).json({ error: error.message });
    console.error(error);
    response.status(500).json({ error: 'The order could not be saved.' });
  });
  return app;
}
