// What the drivers of HTTP frameworks share: a caller that sees every byte, and the start of a server.
import { createServer, request as httpRequest } from 'node:http';
import type { IncomingMessage, RequestListener, Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Reply, RunningService, ServiceCall } from './endpoint.ts';

/** Where the drivers' services have their old endpoint. */
export const path = '/effects';

/** A running service of a listener, as `createServer` takes it. */
export async function serveListener(listener: RequestListener): Promise<RunningService> {
  const server: Server = createServer(listener);
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    call: callOverHttp(`http://127.0.0.1:${port}`),
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** Calls the old endpoint at `base` with JSON. */
export function callOverHttp(base: string): RunningService['call'] {
  return ({ headers, body, bytes: raw, signal, nowhere = false, onData }: ServiceCall) =>
    new Promise<Reply>((resolve, reject) => {
      const bytes = raw ?? Buffer.from(JSON.stringify(body));
      const request = httpRequest(`${base}${nowhere ? '/nowhere' : path}`, {
        method: 'POST',
        headers: {
          'content-type': raw === undefined ? 'application/json' : 'application/octet-stream',
          'content-length': bytes.length,
          ...headers,
        },
        ...(signal === undefined ? {} : { signal }),
      });
      request.on('error', reject).on('response', (response) => {
        const chunks: Buffer[] = [];
        response
          .on('data', (chunk: Buffer) => {
            chunks.push(chunk);
            onData?.(chunk);
          })
          .on('error', reject)
          .on('end', () => resolve(replyOf(response, Buffer.concat(chunks))));
      });
      request.end(bytes);
    });
}

function replyOf(response: IncomingMessage, bytes: Buffer): Reply {
  const headers = Object.fromEntries(Object.entries(response.headers).map(([name, value]) => [name, String(value)]));
  const { date: _, ...lasting } = headers;
  const text = bytes.toString();
  return {
    status: response.statusCode!,
    outcome: headers['turnout-outcome'],
    error: headers['turnout-error'],
    headers,
    body: parsed(text),
    raw: { status: response.statusCode, message: response.statusMessage, headers: lasting, text },
  };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}
