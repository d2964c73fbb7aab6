import { Agent, createServer, request as httpRequest } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

/** What was seen and done on the way between the shop and one service. */
export interface WireCounts {
  readonly calls: number;
  readonly requestsLost: number;
  readonly answersLost: number;
  /** Answers that said "this was applied before": Turnout-Outcome: duplicate. */
  readonly duplicates: number;
  /** Answers 425: the call came before its turn. */
  readonly early: number;
}

/** A network that passes calls on, looks at the answers, and loses what it is told to lose. */
export interface Wire {
  readonly url: string;
  readonly counts: WireCounts;
  /** Shares between 0 and 1 of what gets lost from now on. An answer is lost after the service has done its work. */
  lose(share: { readonly requests?: number; readonly answers?: number }): void;
  close(): Promise<void>;
}

/** Opens a wire to the service that listens on a port of this machine. */
export async function openWire(servicePort: number): Promise<Wire> {
  const agent = new Agent({ keepAlive: true });
  const counts = { calls: 0, requestsLost: 0, answersLost: 0, duplicates: 0, early: 0 };
  let loss = { requests: 0, answers: 0 };

  const server = createServer((request, response) => {
    counts.calls++;
    if (Math.random() < loss.requests) {
      counts.requestsLost++;
      request.socket.destroy();
      return;
    }
    void pass(request, response).catch(() => request.socket.destroy());
  });

  async function pass(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const answer = await forward(agent, servicePort, request, await bodyOf(request));
    if (answer.headers['turnout-outcome'] === 'duplicate') counts.duplicates++;
    if (answer.status === 425) counts.early++;
    if (Math.random() < loss.answers) {
      counts.answersLost++;
      request.socket.destroy();
      return;
    }
    response.writeHead(answer.status, answer.headers).end(answer.body);
  }

  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    counts,
    lose: ({ requests = 0, answers = 0 }) => {
      loss = { requests, answers };
    },
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
        agent.destroy();
      }),
  };
}

interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage['headers'];
  readonly body: Buffer;
}

function forward(agent: Agent, port: number, request: IncomingMessage, body: Buffer): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const { connection: _connection, ...headers } = request.headers;
    const outgoing = httpRequest(
      { host: '127.0.0.1', port, method: request.method, path: request.url, headers, agent },
      (answer) => {
        bodyOf(answer).then((bytes) => {
          const { connection: _ignored, 'transfer-encoding': _coding, ...kept } = answer.headers;
          resolve({ status: answer.statusCode ?? 502, headers: kept, body: bytes });
        }, reject);
      },
    );
    outgoing.once('error', reject);
    outgoing.end(body);
  });
}

async function bodyOf(message: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of message) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}
