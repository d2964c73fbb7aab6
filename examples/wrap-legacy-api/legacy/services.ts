// Two services whose code nobody has any more. Each request has its effect: ask twice, and there are two rows.
import { createServer } from 'node:http';
import type { IncomingMessage, Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Pool } from 'pg';

export interface LegacyService {
  readonly url: string;
  close(): Promise<void>;
}

/** POST /notifications {orderId}: tells the customer. */
export const serveNotifications = (pool: Pool): Promise<LegacyService> =>
  serve('/notifications', async (body) => {
    await pool.query('insert into notification (order_id) values ($1)', [body['orderId']]);
    return { queued: true };
  });

/** POST /parcels {parcelId}: books a parcel that a scanner has seen. */
export const serveParcels = (pool: Pool): Promise<LegacyService> =>
  serve('/parcels', async (body) => {
    await pool.query('insert into parcel (parcel_id) values ($1)', [body['parcelId']]);
    return { booked: body['parcelId'] };
  });

async function serve(
  path: string,
  effect: (body: Record<string, unknown>) => Promise<unknown>,
): Promise<LegacyService> {
  const server = createServer((request, response) => {
    const answer = async (): Promise<void> => {
      if (request.url === '/health') return void response.end('fine');
      if (request.method !== 'POST' || request.url !== path) return void response.writeHead(404).end();
      const answered = await effect(JSON.parse(await textOf(request)) as Record<string, unknown>);
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answered));
    };
    answer().catch(() => response.writeHead(500).end());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, close: () => closed(server) };
}

async function textOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString();
}

function closed(server: Server): Promise<void> {
  return new Promise((resolve) => {
    server.close(() => resolve());
    server.closeAllConnections();
  });
}
