// The shop's API, as it always was: plain Express, SQL on a pool, a transaction of its own. It knows nothing of events.
import type { RequestHandler } from 'express';
import type { Pool } from 'pg';

export function placeOrder(pool: Pool): RequestHandler {
  return async (request, response) => {
    const { item } = request.body as { item?: string };
    if (item === undefined) {
      response.status(422).json({ error: 'no item' });
      return;
    }
    const client = await pool.connect();
    try {
      await client.query('begin');
      const { rows } = await client.query<{ id: string }>('insert into shop_order (item) values ($1) returning id', [
        item,
      ]);
      await client.query('commit');
      response.status(201).json({ id: rows[0]!.id });
    } catch (error) {
      await client.query('rollback');
      throw error;
    } finally {
      client.release();
    }
  };
}
