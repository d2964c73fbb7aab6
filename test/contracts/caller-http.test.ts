import { createServer } from 'node:http';
import type { ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import axios from 'axios';
import type { RpcAnswer, RpcCall } from 'turnout';
import { rpcAxios } from 'turnout/axios';
import { rpcFetch } from 'turnout/fetch';
import { callerContract } from './caller.ts';
import type { Callee, CalleeDeed, CallerDriver } from './caller.ts';
import { statusOfError } from './endpoint.ts';

function act(deed: CalleeDeed, response: ServerResponse): void {
  const send = (status: number, headers: Record<string, string>, body: unknown): void =>
    void response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
  switch (deed.do) {
    case 'answer':
      return send(200, deed.headers, deed.body);
    case 'refuse':
      return send(422, deed.headers, { error: deed.message });
    case 'gate':
      return send(statusOfError(deed.error), { ...deed.headers, 'turnout-error': deed.error }, {});
    case 'fail':
      return send(503, {}, { error: deed.message });
    case 'redirect':
      return send(307, { location: '/effects' }, {});
    case 'hang up':
      return void response.destroy();
    case 'never':
      return undefined;
    case 'stall':
      return void response.writeHead(200, { 'turnout-outcome': 'applied' }).write('{');
  }
}

function driver(name: string, call: (rpc: RpcCall, url: string, data: unknown) => Promise<RpcAnswer>): CallerDriver {
  return {
    name,
    features: { redirects: true, stalls: true },
    async start(callee: Callee) {
      const server = createServer((request, response) => {
        let body = '';
        request
          .on('data', (chunk: Buffer) => (body += chunk.toString('latin1')))
          .on('end', () => act(callee({ headers: request.headers as Record<string, string>, body }), response));
      });
      await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/effects`;
      return {
        call: (rpc, data) => call(rpc, url, data),
        stop: () =>
          new Promise((resolve) => {
            server.close(() => resolve());
            server.closeAllConnections();
          }),
      };
    },
  };
}

callerContract(driver('fetch', (rpc, url, data) => rpcFetch(rpc, url, { json: data })));
callerContract(driver('axios', (rpc, url, data) => rpcAxios(rpc, url, { data })));

// An instance with settings and interceptors that would change what an answer is, were they heeded.
const instance = axios.create({ maxRedirects: 5, timeout: 60_000, headers: { 'Turnout-Consumer': 'somebody' } });
instance.interceptors.response.use((response) => {
  if (response.status >= 400) throw new axios.AxiosError('no', 'ERR', response.config, response.request, response);
  return response;
});
callerContract(driver('axios, an instance', (rpc, url, data) => rpcAxios(rpc, url, { data, axios: instance })));
callerContract(driver('axios, its adapter fetch', (rpc, url, data) => rpcAxios(rpc, url, { data, adapter: 'fetch' })));
