// What the contract of endpoints does not ask of gRPC, Connect and tRPC, since it is theirs alone.
import { createServer } from 'node:http';
import type { RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { create } from '@bufbuild/protobuf';
import type { Message } from '@bufbuild/protobuf';
import { Code, ConnectError, createClient } from '@connectrpc/connect';
import type { CallOptions } from '@connectrpc/connect';
import { connectNodeAdapter, createConnectTransport } from '@connectrpc/connect-node';
import { credentials, Metadata, Server, ServerCredentials, status } from '@grpc/grpc-js';
import type { handleUnaryCall, ServiceError } from '@grpc/grpc-js';
import { createTRPCClient, httpBatchLink } from '@trpc/client';
import { initTRPC } from '@trpc/server';
import { createHTTPHandler } from '@trpc/server/adapters/standalone';
import { afterEach, describe, expect, test } from 'vitest';
import { createEndpoint } from 'turnout';
import type { Endpoint, EndpointOptions } from 'turnout';
import { switchedOver as connectSwitchedOver } from 'turnout/connect';
import { definitiveCodes, switchedOver as grpcSwitchedOver } from 'turnout/grpc';
import { joinPool, pgDatabase } from 'turnout/pg';
import { callContext, switchedOver as trpcSwitchedOver } from 'turnout/trpc';
import type { CallContext } from 'turnout/trpc';
import { metadataOfCall } from '../contracts/endpoint.ts';
import { ConnectEffects, GrpcEffects, have } from '../contracts/protobuf.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const created = await database({ template: migrated('consumer') });
const pool = joinPool(created.pool());
const endpointOf = (options: Partial<EndpointOptions<never, never>> = {}): Endpoint =>
  createEndpoint({ consumer: 'email', order: 'none', ...options, database: pgDatabase(pool) as never });

async function listen(listener: RequestListener): Promise<string> {
  const server = createServer(listener);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  closers.push(
    () => new Promise<void>((resolve) => server.close(() => resolve())),
    () => server.closeAllConnections(),
  );
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

type Unary = handleUnaryCall<unknown, unknown>;

describe('gRPC', () => {
  async function serve(endpoint: Endpoint, handler: (...own: Parameters<Unary>) => unknown) {
    const server = new Server();
    server.addService(GrpcEffects.service, {
      Have: grpcSwitchedOver(endpoint, GrpcEffects.service['Have']!, handler),
    });
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error === null ? resolve(bound) : reject(error),
      ),
    );
    const client = new GrpcEffects(`127.0.0.1:${port}`, credentials.createInsecure());
    closers.push(() => {
      client.close();
      server.forceShutdown();
    });
    return (headers: Record<string, string>) =>
      new Promise<{ code: number; details: string; message: unknown; initial: Metadata; trailers: Metadata }>(
        (resolve) => {
          const metadata = new Metadata();
          for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
          let message: unknown;
          let initial = new Metadata();
          const invoke = client['Have'] as (
            request: unknown,
            metadata: Metadata,
            callback: (error: unknown, answer?: unknown) => void,
          ) => { on(event: string, listener: (value: never) => void): unknown };
          const call = invoke.call(client, { name: 'a', step: 1 }, metadata, (_, answer) => (message = answer));
          call.on('metadata', (received: Metadata) => (initial = received));
          call.on('status', ({ code, details, metadata: trailers }: ServiceError) =>
            resolve({ code, details, message, initial, trailers }),
          );
        },
      );
  }

  test('a refusal is given again with its code, its text and its trailers', async () => {
    let calls = 0;
    const call = await serve(endpointOf(), (_, callback) => {
      calls++;
      const metadata = new Metadata();
      metadata.set('x-reason', 'stock');
      metadata.set('x-detail-bin', Buffer.from([0, 255, 7]));
      callback({ code: status.FAILED_PRECONDITION, details: 'sold out: 𝄞', metadata });
    });
    const headers = metadataOfCall();
    for (const outcome of ['rejected', 'duplicate']) {
      const { code, details, trailers } = await call(headers);
      expect({ code, details }).toEqual({ code: status.FAILED_PRECONDITION, details: 'sold out: 𝄞' });
      expect(trailers.get('turnout-outcome')).toEqual([outcome]);
      expect(trailers.get('x-reason')).toEqual(['stock']);
      expect(trailers.get('x-detail-bin')).toEqual([Buffer.from([0, 255, 7])]);
      expect(trailers.get('grpc-status')).toEqual([]);
    }
    expect(calls).toBe(1);
  });

  test('codes that the endpoint names are definitive, and no others', async () => {
    const answers = [status.PERMISSION_DENIED, status.NOT_FOUND, status.ABORTED];
    let next = 0;
    const isDefinitive = definitiveCodes([status.PERMISSION_DENIED]);
    const call = await serve(endpointOf({ isDefinitive }), (_, callback) =>
      callback({ code: answers[next++]!, details: 'no' }),
    );
    const outcomes: unknown[] = [];
    for (const _ of answers) outcomes.push((await call(metadataOfCall())).trailers.get('turnout-outcome')[0]);
    expect(outcomes).toEqual(['rejected', undefined, undefined]);
  });

  test('what the handler sends ahead is held back too, and sent with its answer only', async () => {
    let next = 0;
    const call = await serve(endpointOf({ maxAnswerBytes: 50 }), (own, callback) => {
      const initial = new Metadata();
      initial.set('x-ahead', 'yes');
      own.sendMetadata(initial);
      // The second answer is too large, so nothing of it may be seen.
      callback(null, { sent: next++ === 0 ? 'a' : 'a'.repeat(100) });
    });
    const [first, second] = [await call(metadataOfCall()), await call(metadataOfCall())];
    expect({ code: first.code, ahead: first.initial.get('x-ahead') }).toEqual({ code: status.OK, ahead: ['yes'] });
    expect({ code: second.code, ahead: second.initial.get('x-ahead') }).toEqual({
      code: status.UNAVAILABLE,
      ahead: [],
    });
  });

  test('a repeat of what is not kept gets the empty message', async () => {
    const headers = metadataOfCall();
    const call = await serve(endpointOf({ maxKeptBytes: 0 }), (_, callback) => callback(null, { sent: 'a' }));
    expect((await call(headers)).message).toEqual({ sent: 'a' });
    expect((await call(headers)).message).toEqual({});
  });

  test('a handler that throws and one that rejects roll back', async () => {
    let next = 0;
    const call = await serve(endpointOf(), (_, callback) => {
      if (next++ === 0) throw new Error('out of paper');
      return next === 2 ? Promise.reject(new Error('out of paper')) : callback(null, { sent: 'a' });
    });
    const headers = metadataOfCall();
    for (const outcome of [undefined, undefined, 'applied'])
      expect((await call(headers)).trailers.get('turnout-outcome')[0]).toBe(outcome);
  });

  test('a streaming method is refused when it is wrapped', () => {
    expect(() => grpcSwitchedOver(endpointOf(), GrpcEffects.service['Watch']!, () => undefined)).toThrow(
      expect.objectContaining({ code: 'TURNOUT_DEFINITION_INVALID' }),
    );
  });
});

describe('Connect', () => {
  test('an error is given again with its code, its metadata and its details', async () => {
    const interceptors = [connectSwitchedOver(endpointOf())];
    const detail = { desc: have.input, value: create(have.input, { name: 'lamp', step: 3 }) };
    const baseUrl = await listen(
      connectNodeAdapter({
        routes: (router) =>
          void router.rpc(
            have,
            () => {
              throw new ConnectError('sold out', Code.NotFound, { 'x-reason': 'stock' }, [detail]);
            },
            { interceptors },
          ),
      }),
    );
    const client = createClient(ConnectEffects, createConnectTransport({ baseUrl, httpVersion: '1.1' }));
    const invoke = client['have'] as unknown as (request: object, options: CallOptions) => Promise<Message>;
    const headers = metadataOfCall();
    for (const outcome of ['rejected', 'duplicate']) {
      const error = ConnectError.from(await invoke({ name: 'a', step: 1 }, { headers }).catch((e: unknown) => e));
      expect({ code: error.code, text: error.rawMessage }).toEqual({ code: Code.NotFound, text: 'sold out' });
      expect(error.metadata.get('turnout-outcome')).toBe(outcome);
      expect(error.metadata.get('x-reason')).toBe('stock');
      expect(error.metadata.get('grpc-status')).toBeNull();
      expect(error.findDetails(have.input)).toMatchObject([{ name: 'lamp', step: 3 }]);
    }
  });
});

describe('tRPC', () => {
  const dates = {
    serialize: (data: unknown) => ({ at: (data as { at: Date }).at.getTime() }),
    deserialize: (data: unknown) => ({ at: new Date((data as { at: number }).at) }),
  };
  const t = initTRPC.context<{ turnout: CallContext }>().create({ isDev: false });

  async function serve() {
    let calls = 0;
    const at = new Date(Date.UTC(2026, 10, 23));
    const wrapped = t.procedure.use(trpcSwitchedOver(endpointOf(), { transformer: dates }));
    const router = t.router({
      have: wrapped.mutation(() => (calls++, { at })),
      look: wrapped.query(() => ({ at })),
    });
    const url = await listen(createHTTPHandler({ router, createContext: callContext }));
    return { url, router, calls: () => calls };
  }

  const post = async (url: string, method = 'POST', headers = metadataOfCall()) => {
    const response = await fetch(url, {
      method,
      headers: { 'content-type': 'application/json', ...headers },
      ...(method === 'GET' ? {} : { body: '{}' }),
    });
    return {
      status: response.status,
      outcome: response.headers.get('turnout-outcome'),
      error: response.headers.get('turnout-error'),
      text: await response.text(),
    };
  };

  test('data goes through the transformer to be kept', async () => {
    const { url, calls } = await serve();
    const headers = metadataOfCall();
    const first = await post(`${url}/have`, 'POST', headers);
    expect(first).toMatchObject({ status: 200, outcome: 'applied' });
    expect(await post(`${url}/have`, 'POST', headers)).toEqual({ ...first, outcome: 'duplicate' });
    expect(first.text).toContain('2026-11-23');
    expect(calls()).toBe(1);
  });

  test('a batch with the headers of one call is refused; a batch of one, and one without them, are not', async () => {
    const { url, router, calls } = await serve();
    const refused = await post(`${url}/have,have?batch=1`);
    expect(refused).toMatchObject({ status: 400, outcome: null, error: 'TURNOUT_CALL_HEADERS_MALFORMED' });
    expect(calls()).toBe(0);
    const client = (headers: Record<string, string>) =>
      createTRPCClient<typeof router>({ links: [httpBatchLink({ url, headers })] });
    await Promise.all([client({}).have.mutate(), client({}).have.mutate()]);
    await client(metadataOfCall()).have.mutate();
    expect(calls()).toBe(3);
  });

  test('a query with the headers of a call is refused', async () => {
    const { url } = await serve();
    expect(await post(`${url}/look`, 'GET')).toMatchObject({ status: 400, error: 'TURNOUT_CALL_HEADERS_MALFORMED' });
    expect(await post(`${url}/look`, 'GET', {})).toMatchObject({ status: 200, error: null });
  });

  test('a call that comes through no transport goes through untouched', async () => {
    const { router, calls } = await serve();
    await t.createCallerFactory(router)(callContext()).have();
    expect(calls()).toBe(1);
  });
});
