// The network between the publishers and one service, as bad as networks are: what is asked or answered gets lost, comes late, comes
// twice, or is answered by somebody on the way who knows nothing of Turnout.
import { Agent, createServer, request as httpRequest } from 'node:http';
import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

/** What was seen and done. */
export interface NetworkCounts {
  calls: number;
  /** Calls of an effect that was called for before. */
  repeatedCalls: number;
  requestsLost: number;
  answersLost: number;
  answersLate: number;
  requestsDoubled: number;
  foreignAnswers: number;
  /** Answers with Turnout-Outcome: duplicate; with status 425; with status 409. */
  duplicates: number;
  early: number;
  running: number;
}

export interface BadNetwork {
  readonly url: string;
  readonly counts: NetworkCounts;
  /** Off: everything arrives, once and at once. */
  bad: boolean;
  close(): Promise<void>;
}

/** Opens a network to the instances of a service. */
export async function openBadNetwork(ports: readonly number[], random: () => number): Promise<BadNetwork> {
  const agent = new Agent({ keepAlive: true });
  const seen = new Set<string>();
  const counts: NetworkCounts = {
    calls: 0,
    repeatedCalls: 0,
    requestsLost: 0,
    answersLost: 0,
    answersLate: 0,
    requestsDoubled: 0,
    foreignAnswers: 0,
    duplicates: 0,
    early: 0,
    running: 0,
  };
  let bad = false;
  const happens = (chance: number): boolean => bad && random() < chance;
  const port = (): number => ports[Math.floor(random() * ports.length)]!;

  async function pass(request: IncomingMessage, response: ServerResponse): Promise<void> {
    counts.calls++;
    const key = String(request.headers['idempotency-key']);
    if (seen.has(key)) counts.repeatedCalls++;
    seen.add(key);
    const body = await bytesOf(request);
    if (happens(0.02)) {
      counts.requestsLost++;
      return void request.socket.destroy();
    }
    if (happens(0.01)) {
      // Where the service was moved away, or a gateway has restarted.
      counts.foreignAnswers++;
      return void response.writeHead(random() < 0.5 ? 404 : 502, { 'content-type': 'text/plain' }).end('who?');
    }
    if (happens(0.02)) {
      counts.requestsDoubled++;
      void forward(agent, port(), request, body).then(count, () => undefined);
    }
    const answer = await forward(agent, port(), request, body);
    count(answer);
    if (happens(0.02)) {
      counts.answersLost++;
      return void request.socket.destroy();
    }
    if (happens(0.03)) {
      counts.answersLate++;
      // Some of them after the caller has given up.
      await delay(100 + random() * 3_000);
    }
    response.writeHead(answer.status, answer.headers).end(answer.body);
  }

  function count({ status, headers }: Answer): void {
    if (headers['turnout-outcome'] === 'duplicate') counts.duplicates++;
    if (status === 425) counts.early++;
    if (status === 409) counts.running++;
  }

  const server = createServer((request, response) => {
    pass(request, response).catch(() => request.socket.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    counts,
    get bad() {
      return bad;
    },
    set bad(value) {
      bad = value;
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
  readonly headers: IncomingHttpHeaders;
  readonly body: Buffer;
}

function forward(agent: Agent, port: number, request: IncomingMessage, body: Buffer): Promise<Answer> {
  const { connection: _connection, ...headers } = request.headers;
  return new Promise((resolve, reject) => {
    const sent = httpRequest(
      { host: '127.0.0.1', port, method: request.method, path: request.url, headers, agent },
      (answer) => {
        const { connection: _ignored, 'transfer-encoding': _coding, ...kept } = answer.headers;
        bytesOf(answer).then(
          (bytes) => resolve({ status: answer.statusCode ?? 502, headers: kept, body: bytes }),
          reject,
        );
      },
    );
    sent.once('error', reject);
    sent.end(body);
  });
}

async function bytesOf(message: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of message) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}
