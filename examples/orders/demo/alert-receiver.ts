import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Alert } from 'turnout';

/** Where alerts arrive: in real life a chat or a pager, here a server that keeps them. */
export interface AlertReceiver {
  readonly url: string;
  readonly alerts: readonly Alert[];
  close(): Promise<void>;
}

export async function openAlertReceiver(): Promise<AlertReceiver> {
  const alerts: Alert[] = [];
  const server = createServer((request, response) => {
    let text = '';
    request.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    request.on('end', () => {
      const alert = JSON.parse(text) as Alert;
      // The same cause has the same id, whoever tells it.
      if (!alerts.some(({ id }) => id === alert.id)) alerts.push(alert);
      response.writeHead(202).end();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/alerts`,
    alerts,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
