import express from 'express';
import type { Request } from 'express';
import { JSONRPCErrorException, JSONRPCServer } from 'json-rpc-2.0';
import type { PoolClient } from 'pg';
import { describe, expect, test } from 'vitest';
import { createEndpoint } from 'turnout';
import { switchedOver } from 'turnout/json-rpc';
import { pgDatabase } from 'turnout/pg';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';
import { path, serveListener } from './endpoint-http.ts';
import { endpointContract, metadataOfCall } from './endpoint.ts';
import type { Deed, EndpointDriver, Reply } from './endpoint.ts';

function act(deed: Deed): unknown {
  switch (deed.do) {
    case 'answer':
      return deed.body;
    case 'refuse':
      throw new JSONRPCErrorException(deed.message, 1001);
    case 'fail':
      throw new JSONRPCErrorException(deed.message, -32603);
    default:
      throw new Error(`A method can't ${deed.do}.`);
  }
}

/** What the codes of JSON-RPC are like in HTTP. */
function inWordsOfHttp(reply: Reply): Reply {
  const { result, error } = reply.body as { result?: unknown; error?: { code: number; message: string } };
  if (reply.error !== undefined) return { ...reply, body: error?.message };
  if (error === undefined) return { ...reply, body: result };
  const statuses: Record<number, number> = { 1001: 422, [-32601]: 404, [-32602]: 422 };
  return { ...reply, status: statuses[error.code] ?? 500, body: error.message };
}

const driver: EndpointDriver<Request> = {
  name: 'JSON-RPC',
  features: {
    statuses: false,
    streaming: false,
    answersTwice: false,
    breaks: false,
    passesOn: false,
    answerHeaders: false,
    nests: false,
  },
  authorization: (request) => request.headers.authorization,
  async start({ endpoint, handler }) {
    const server = new JSONRPCServer({ errorListener: () => undefined });
    server.addMethod('effects', async (params) => act(await handler(params)));
    const gated =
      endpoint === undefined ? undefined : switchedOver(endpoint, server, { isDefinitive: (code) => code === 1001 });
    const app = express();
    app.post(path, express.json(), async (request, response) => {
      const answer = await (gated === undefined
        ? server.receive(request.body)
        : gated.receive(request.body, { request, response }));
      if (answer === null) response.status(204).end();
      else response.json(answer);
    });
    const service = await serveListener(app);
    return {
      ...service,
      async call({ body, nowhere = false, ...request }) {
        // Another id at each attempt, as the library's client gives it.
        const id = 'turnout-consumer' in request.headers ? ++calls : 1;
        const rpc = { jsonrpc: '2.0', id, method: nowhere ? 'nowhere' : 'effects', params: body };
        return inWordsOfHttp(await service.call({ ...request, body: rpc }));
      },
    };
  },
};
let calls = 1000;

endpointContract(driver);

describe('JSON-RPC behind the gate', () => {
  const exchange = (headers: Record<string, string>) => {
    const sent: Record<string, string> = {};
    const response = { statusCode: 200, setHeader: (name: string, value: string) => void (sent[name] = value) };
    return { request: { headers }, response, sent };
  };

  async function gated(method: () => unknown = () => 'sent') {
    const created = await database({ template: migrated('consumer') });
    const endpoint = createEndpoint<PoolClient, { headers: Record<string, string> }>({
      consumer: 'email',
      database: pgDatabase(created.pool()),
      order: 'none',
    });
    const server = new JSONRPCServer({ errorListener: () => undefined });
    let runs = 0;
    server.addMethod('send', () => {
      runs++;
      return method();
    });
    return { ...switchedOver(endpoint, server), runs: () => runs };
  }

  const send = { jsonrpc: '2.0' as const, method: 'send' };

  test('a batch with Turnout’s headers is refused whole; without them it is as it was', async () => {
    const { receive, runs } = await gated();
    const batch = [
      { ...send, id: 1 },
      { ...send, id: 2 },
    ];
    const http = exchange(metadataOfCall());
    expect(await receive(batch, http)).toMatchObject({ id: null, error: { code: -32000 } });
    expect(http.response.statusCode).toBe(400);
    expect(http.sent).toEqual({ 'turnout-error': 'TURNOUT_CALL_HEADERS_MALFORMED' });
    expect(runs()).toBe(0);
    expect(await receive(batch, exchange({}))).toMatchObject([
      { id: 1, result: 'sent' },
      { id: 2, result: 'sent' },
    ]);
  });

  test('a notification is one effect, and its outcome goes in the headers', async () => {
    const { receive, runs } = await gated();
    const headers = metadataOfCall();
    for (const outcome of ['applied', 'duplicate']) {
      const http = exchange(headers);
      expect(await receive(send, http)).toBeNull();
      expect(http.sent).toEqual({ 'turnout-outcome': outcome });
    }
    expect(runs()).toBe(1);
    expect(await receive(send, exchange({}))).toBeNull();
  });

  test.each([
    [-32600, 'rejected'],
    [-32602, 'rejected'],
    [1001, undefined],
    [503, undefined],
    ['40001', undefined],
    ['P0001', undefined],
    [-32603, undefined],
    [-32601, undefined],
    [-32000, undefined],
    [0, undefined],
  ])('an error of code %j has outcome %s, also of a notification', async (code, outcome) => {
    const { receive } = await gated(() => {
      throw new JSONRPCErrorException('no', code as number);
    });
    const http = exchange(metadataOfCall());
    expect(await receive({ ...send, id: 7 }, http)).toMatchObject({ id: 7, error: { code, message: 'no' } });
    expect(http.sent['turnout-outcome']).toBe(outcome);
    const silent = exchange(metadataOfCall());
    expect(await receive(send, silent)).toBeNull();
    expect(silent.sent['turnout-outcome']).toBe(outcome);
  });

  test('a code that is no integer refuses nothing, whatever the endpoint says of codes', async () => {
    const created = await database({ template: migrated('consumer') });
    const endpoint = createEndpoint<PoolClient, { headers: Record<string, string> }>({
      consumer: 'email',
      database: pgDatabase(created.pool()),
      order: 'none',
    });
    const server = new JSONRPCServer({ errorListener: () => undefined });
    server.addMethod('send', () => {
      throw new JSONRPCErrorException('could not serialize', '40001' as unknown as number);
    });
    const http = exchange(metadataOfCall());
    await switchedOver(endpoint, server, { isDefinitive: () => true }).receive({ ...send, id: 1 }, http);
    expect(http.sent['turnout-outcome']).toBeUndefined();
  });

  test('a repeat has the id of its own request, in text too', async () => {
    const { receiveJSON } = await gated();
    const headers = metadataOfCall();
    expect(await receiveJSON(JSON.stringify({ ...send, id: 'a' }), exchange(headers))).toMatchObject({ id: 'a' });
    expect(await receiveJSON(JSON.stringify({ ...send, id: 'b' }), exchange(headers))).toEqual({
      jsonrpc: '2.0',
      id: 'b',
      result: 'sent',
    });
    expect(await receiveJSON('{', exchange(headers))).toMatchObject({ error: { code: -32700 } });
  });
});
