// Passes requests on to the target as they are: bodies stream both ways, WebSockets too, and only the headers that are about one
// connection are dropped. A request whose body was read already is passed on with it.
import { Agent, request as httpRequest } from 'node:http';
import type { ClientRequest, IncomingMessage, ServerResponse } from 'node:http';
import { Agent as SecureAgent, request as httpsRequest } from 'node:https';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { originForm } from './find-route.ts';
import { endToEnd, forwardedHeaders } from './forwarded-headers.ts';

export interface PassOn {
  /** Resolves when the answer is through, or can't be; never rejects. `body`: what was read of the request. */
  request(request: IncomingMessage, response: ServerResponse, body?: Buffer): Promise<void>;
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void;
  close(): void;
}

export function passOn(target: URL, timeoutMs: number): PassOn {
  const secure = target.protocol === 'https:';
  const agent = secure ? new SecureAgent({ keepAlive: true }) : new Agent({ keepAlive: true });
  const base = target.pathname.replace(/\/$/, '');
  const open = new Set<Duplex>();

  function ask(request: IncomingMessage, extra: readonly string[] = []): ClientRequest {
    const { method, url = '/', rawHeaders, socket } = request;
    // A body of no told length: without this one, Node would send that of a GET with no end marked, and the rest would be taken for
    // another request.
    const chunked = request.headers['transfer-encoding'] === undefined ? [] : ['transfer-encoding', 'chunked'];
    const headers = forwardedHeaders(rawHeaders, {
      host: target.host,
      address: socket.remoteAddress,
      scheme: 'encrypted' in socket ? 'https' : 'http',
    });
    return (secure ? httpsRequest : httpRequest)({
      agent: extra.length > 0 ? false : agent,
      protocol: target.protocol,
      hostname: target.hostname.replace(/^\[(.*)\]$/, '$1'),
      port: target.port,
      method,
      // Never in absolute-form: a target that is itself a proxy would go elsewhere with it.
      path: pathAt(base, url),
      headers: [...headers, ...chunked, ...extra] as never,
      timeout: timeoutMs,
      setHost: false,
    });
  }

  return {
    async request(request, response, body) {
      const upstream = ask(request);
      let late = false;
      upstream.on('timeout', () => {
        late = true;
        upstream.destroy(new Error('The target was silent for too long.'));
      });
      const answered = new Promise<IncomingMessage>((resolve, reject) => {
        upstream.once('response', resolve);
        upstream.once('error', reject);
      });
      answered.catch(() => undefined);
      // Whoever hangs up wants no answer.
      response.once('close', () => {
        if (!response.writableFinished) upstream.destroy();
      });
      const sending = body === undefined ? pipeline(request, upstream) : Promise.resolve(upstream.end(body));
      sending.catch((error: unknown) => upstream.destroy(error as Error));
      try {
        const answer = await answered;
        response.writeHead(
          answer.statusCode ?? 502,
          answer.statusMessage,
          endToEnd(answer.rawHeaders, () => false),
        );
        await pipeline(answer, response);
      } catch {
        if (response.headersSent || response.destroyed) response.destroy();
        else
          response
            .writeHead(late ? 504 : 502, { 'content-type': 'text/plain' })
            .end('The endpoint behind gave no answer.\n');
      }
    },
    upgrade(request, socket, head) {
      const upstream = ask(request, ['connection', 'upgrade', 'upgrade', request.headers.upgrade ?? '']);
      const refuse = (): void =>
        void socket.end('HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\ncontent-length: 0\r\n\r\n');
      socket.on('error', () => upstream.destroy());
      upstream.on('error', refuse);
      upstream.on('timeout', () => upstream.destroy());
      // No switch, but an answer: whole, and the last one on this connection.
      upstream.on('response', (answer) => {
        const headers = endToEnd(answer.rawHeaders, () => false);
        const lines = [`HTTP/1.1 ${answer.statusCode} ${answer.statusMessage}`];
        for (let index = 0; index + 1 < headers.length; index += 2)
          lines.push(`${headers[index]}: ${headers[index + 1]}`);
        socket.write(`${lines.join('\r\n')}\r\nconnection: close\r\n\r\n`, 'latin1');
        pipeline(answer, socket).catch(() => socket.destroy());
      });
      upstream.on('upgrade', (answer, upstreamSocket, upstreamHead) => {
        upstream.off('error', refuse);
        open.add(socket).add(upstreamSocket);
        const lines: string[] = [];
        for (let index = 0; index + 1 < answer.rawHeaders.length; index += 2)
          lines.push(`${answer.rawHeaders[index]}: ${answer.rawHeaders[index + 1]}`);
        socket.write(`HTTP/1.1 101 ${answer.statusMessage}\r\n${lines.join('\r\n')}\r\n\r\n`);
        socket.write(upstreamHead);
        upstreamSocket.write(head);
        upstreamSocket.setTimeout(0);
        const over = (): void => {
          open.delete(socket);
          open.delete(upstreamSocket);
          socket.destroy();
          upstreamSocket.destroy();
        };
        for (const each of [socket, upstreamSocket]) each.once('close', over).on('error', over);
        socket.pipe(upstreamSocket).pipe(socket);
      });
      upstream.end();
    },
    close() {
      agent.destroy();
      for (const socket of open) socket.destroy();
    },
  };
}

function pathAt(base: string, url: string): string {
  const path = originForm(url) ?? '/';
  return path === '*' ? path : `${base}${path}`;
}
