import type { Express } from 'express';
import type { AddressInfo } from 'node:net';

/** Serves an app until SIGTERM or SIGINT; then answers what it has begun, and calls `close`. */
export async function serve(name: string, app: Express, port: number, close: () => Promise<void>): Promise<void> {
  const server = app.listen(port, '127.0.0.1');
  await new Promise<void>((resolve, reject) => {
    server.once('listening', resolve);
    server.once('error', reject);
  });
  console.log(`${name}: listening on ${(server.address() as AddressInfo).port}`);
  const stop = (): void => {
    // A caller that keeps its connection busy would keep this process alive.
    server.prependListener('request', (_request, response) => void (response.shouldKeepAlive = false));
    server.close(() => void close());
    server.closeIdleConnections();
  };
  process.once('SIGTERM', stop);
  process.once('SIGINT', stop);
}
