import { randomUUID } from 'node:crypto';
import { request as httpRequest } from 'node:http';
import { pipeline, Readable } from 'node:stream';
import { afterEach, describe, expect, test, vi } from 'vitest';
import type { Request } from 'express';
import { waitFor } from '../support/index.ts';
import { consumer } from './fixtures/switchover-world.ts';

type Consumer = Awaited<ReturnType<typeof consumer>>;
const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function service(...args: Parameters<typeof consumer>): Promise<Consumer> {
  const made = await consumer(...args);
  closers.push(made.close);
  return made;
}

/** The headers of a call for one event. */
function gateHeaders(
  more: Record<string, string | undefined> = {},
  eventId: string = randomUUID(),
): Record<string, string> {
  const headers = {
    'idempotency-key': `"email.${eventId}"`,
    'turnout-consumer': 'email',
    'turnout-event-id': eventId,
    'turnout-event-type': 'orders.order-placed',
    'turnout-event-source': 'orders',
    'turnout-event-topic': 'orders',
    'turnout-event-key': 'order%201',
    'turnout-event-time': new Date().toISOString(),
    ...more,
  };
  return Object.fromEntries(
    Object.entries(headers).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}

async function post(url: string, headers: Record<string, string>, body: unknown = { orderId: 'order 1', step: 1 }) {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
    redirect: 'manual',
  });
  const text = await response.text();
  return {
    status: response.status,
    outcome: response.headers.get('turnout-outcome'),
    error: response.headers.get('turnout-error'),
    headers: response.headers,
    text,
  };
}

const numbered = (number: number, generation = 1) => ({ 'turnout-key-number': `${generation}.${number}` });

describe('calls without Turnout headers', () => {
  test('behave as they did', async () => {
    const s = await service({ authenticate: () => false });
    expect(await post(s.url, {})).toMatchObject({ status: 201, outcome: null, text: '{"sent":"order 1","step":1}' });
    // Its own Idempotency-Key means nothing to the gate.
    expect(await post(s.url, { 'idempotency-key': 'x' })).toMatchObject({ status: 201, outcome: null });
    expect(await s.effects()).toEqual([1, 1]);
    expect(await s.inbox()).toEqual([]);
  });

  test('are refused where the endpoint is told to', async () => {
    const s = await service({ unkeyed: 'refuse' });
    expect(await post(s.url, {})).toMatchObject({ status: 428, outcome: null, error: 'TURNOUT_CALL_UNKEYED' });
    expect(await s.effects()).toEqual([]);
  });
});

describe('headers that don’t count', () => {
  test.each([
    ['nobody is known', () => false],
    ['it throws', () => Promise.reject(new Error('no token'))],
    ['it gives something else', () => 'yes' as unknown as boolean],
  ])('of a caller that is not authenticated: %s', async (_, authenticate) => {
    const s = await service({ authenticate });
    expect(await post(s.url, gateHeaders())).toMatchObject({
      status: 401,
      outcome: null,
      error: 'TURNOUT_UNAUTHENTICATED',
    });
    expect(await s.effects()).toEqual([]);
    expect(await s.inbox()).toEqual([]);
  });

  test('of an authenticated caller count', async () => {
    const s = await service({ authenticate: (request: Request) => request.headers.authorization === 'Bearer good' });
    expect(await post(s.url, gateHeaders({ authorization: 'Bearer good' }))).toMatchObject({
      status: 201,
      outcome: 'applied',
    });
    expect(await post(s.url, gateHeaders({ authorization: 'Bearer bad' }))).toMatchObject({ status: 401 });
  });

  test.each<[string, Record<string, string | undefined>, number, string]>([
    ['no effect key', { 'idempotency-key': undefined }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
    [
      'another consumer',
      { 'turnout-consumer': 'fax', 'idempotency-key': undefined },
      400,
      'TURNOUT_CALL_HEADERS_MALFORMED',
    ],
    [
      'the effect key of another event',
      { 'idempotency-key': `"email.${randomUUID()}"` },
      422,
      'TURNOUT_EFFECT_KEY_REUSED',
    ],
    [
      'an event id that is none',
      { 'turnout-event-id': '17', 'idempotency-key': '"email.17"' },
      400,
      'TURNOUT_CALL_HEADERS_MALFORMED',
    ],
    ['no event type', { 'turnout-event-type': undefined }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
    ['no time', { 'turnout-event-time': undefined }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
    ['a time that is none', { 'turnout-event-time': 'yesterday' }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
    ['a time without a zone', { 'turnout-event-time': '2026-11-20T10:00:00' }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
    ['a time far ahead', { 'turnout-event-time': '2999-01-01T00:00:00.000Z' }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
    ['a key that is not encoded', { 'turnout-event-key': '%zz' }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
    ['a key number at an endpoint without order', numbered(1), 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
    ['a key number that is none', { 'turnout-key-number': 'first' }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
    ['a key number of 0', numbered(0), 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
  ])('malformed: %s', async (_, headers, status, error) => {
    const s = await service();
    expect(await post(s.url, gateHeaders(headers))).toMatchObject({ status, outcome: null, error });
    expect(await s.effects()).toEqual([]);
  });

  test('malformed: no key number at an endpoint with order', async () => {
    const s = await service({ order: 'key' });
    expect(await post(s.url, gateHeaders())).toMatchObject({ status: 400, error: 'TURNOUT_CALL_HEADERS_MALFORMED' });
  });

  test('malformed: for another consumer', async () => {
    const s = await service();
    const eventId = randomUUID();
    const headers = gateHeaders({ 'turnout-consumer': 'fax', 'idempotency-key': `"fax.${eventId}"` }, eventId);
    expect(await post(s.url, headers)).toMatchObject({ status: 400, error: 'TURNOUT_CALL_HEADERS_MALFORMED' });
  });
});

describe('one effect', () => {
  test('is had once; a repeat gets the same answer', async () => {
    const s = await service();
    const headers = gateHeaders();
    const first = await post(s.url, headers);
    expect(first).toMatchObject({ status: 201, outcome: 'applied', text: '{"sent":"order 1","step":1}' });
    const again = await post(s.url, headers);
    expect(again).toMatchObject({ status: 201, outcome: 'duplicate', text: first.text });
    expect(again.headers.get('x-mail')).toBe('queued');
    expect(again.headers.get('content-type')).toBe(first.headers.get('content-type'));
    expect(await s.effects()).toEqual([1]);
  });

  test.each(['before', 'after', 'none'] as const)(
    'is known by its body: the body parser %s the gate',
    async (parser) => {
      const s = await service({ parser });
      if (parser === 'none') {
        s.behaviour.handler = (request, response, next) => {
          let text = '';
          request.on('data', (chunk: Buffer) => (text += chunk.toString()));
          request.on('end', () => {
            s.legacyPool.query('insert into effects (step) values (1)').then(() => response.send(text), next);
          });
        };
      }
      const headers = gateHeaders();
      expect(await post(s.url, headers)).toMatchObject({
        outcome: 'applied',
        text: expect.stringContaining('order 1'),
      });
      // Spaces don't make another body of JSON.
      expect(await post(s.url, headers, '{ "orderId": "order 1",\n "step": 1 }')).toMatchObject({
        outcome: 'duplicate',
      });
      expect(await post(s.url, headers, { orderId: 'order 1', step: 2 })).toMatchObject({
        status: 422,
        outcome: null,
        error: 'TURNOUT_EFFECT_KEY_REUSED',
      });
      expect(await s.effects()).toEqual([1]);
    },
  );

  test('is known by its body, also one in pieces and one that is no JSON', async () => {
    const s = await service({ parser: 'none' });
    s.behaviour.handler = (request, response) => {
      let length = 0;
      request.on('data', (chunk: Buffer) => (length += chunk.length)).on('end', () => response.send(String(length)));
    };
    const send = (bytes: Buffer, headers: Record<string, string>): Promise<string> =>
      new Promise((resolve, reject) => {
        const request = httpRequest(
          s.url,
          { method: 'POST', headers: { ...headers, 'content-type': 'application/octet-stream' } },
          (response) => {
            let text = `${String(response.headers['turnout-outcome'] ?? response.statusCode)} `;
            response.on('data', (chunk: Buffer) => (text += chunk.toString())).on('end', () => resolve(text));
          },
        );
        request.on('error', reject);
        for (let at = 0; at < bytes.length; at += 70_000) request.write(bytes.subarray(at, at + 70_000));
        request.end();
      });
    const bytes = Buffer.alloc(1_000_000, 7);
    const headers = gateHeaders();
    expect(await send(bytes, headers)).toBe('applied 1000000');
    expect(await send(bytes, headers)).toBe('duplicate 1000000');
    expect(await send(Buffer.alloc(1_000_000, 8), headers)).toMatch(/^422 /);
    expect(await send(Buffer.alloc(0), gateHeaders())).toBe('applied 0');
  });

  test('that the handler refuses is rejected, and nothing of it stays', async () => {
    const s = await service();
    s.behaviour.handler = (_request, response, next) => {
      s.legacyPool
        .query('insert into effects (step) values (1)')
        .then(() => response.status(422).send('sold out'), next);
    };
    const headers = gateHeaders();
    expect(await post(s.url, headers)).toMatchObject({ status: 422, outcome: 'rejected', text: 'sold out' });
    expect(await post(s.url, headers)).toMatchObject({ status: 422, outcome: 'duplicate', text: 'sold out' });
    expect(await s.effects()).toEqual([]);
  });

  test.each([500, 503, 302, 401, 402, 403, 405, 406, 409, 412, 413, 415, 419, 423, 424, 429, 440, 449, 499])(
    'that ends with %i has no outcome, and nothing of it stays',
    async (status) => {
      const s = await service();
      const { handler } = s.behaviour;
      s.behaviour.handler = (_request, response, next) => {
        s.legacyPool
          .query('insert into effects (step) values (1)')
          .then(() => response.status(status).set('location', '/').send('sorry'), next);
      };
      const headers = gateHeaders();
      expect(await post(s.url, headers)).toMatchObject({ status, outcome: null, error: null, text: 'sorry' });
      expect(await s.effects()).toEqual([]);
      s.behaviour.handler = handler;
      expect(await post(s.url, headers)).toMatchObject({ outcome: 'applied' });
    },
  );

  test('whose handler throws has no outcome, and nothing of it stays', async () => {
    const s = await service();
    s.behaviour.handler = async () => {
      await s.legacyPool.query('insert into effects (step) values (1)');
      throw new Error('out of paper');
    };
    expect(await post(s.url, gateHeaders())).toMatchObject({
      status: 500,
      outcome: null,
      text: expect.stringContaining('out of paper'),
    });
    expect(await s.effects()).toEqual([]);
  });

  test('that no route handles is not refused by the 404', async () => {
    const s = await service();
    expect(await post(`${s.base}/mounted/nowhere`, gateHeaders())).toMatchObject({ status: 404, outcome: null });
    expect(await s.inbox()).toEqual([]);
  });

  test('that a route leaves to the next is not refused by the 404 that Express answers then', async () => {
    const s = await service();
    const { handler } = s.behaviour;
    s.behaviour.handler = (_request, _response, next) => next();
    const headers = gateHeaders();
    expect(await post(s.url, headers)).toMatchObject({
      status: 404,
      outcome: null,
      text: expect.stringContaining('Cannot POST /effects'),
    });
    expect(await s.inbox()).toEqual([]);
    s.behaviour.handler = handler;
    expect(await post(s.url, headers)).toMatchObject({ status: 201, outcome: 'applied' });
  });

  test('is refused by whichever status the endpoint says', async () => {
    const s = await service({ isDefinitive: (status) => status === 403 });
    const answer = (status: number) => {
      s.behaviour.handler = (_request, response) => void response.status(status).send('no');
      return post(s.url, gateHeaders());
    };
    expect(await answer(403)).toMatchObject({ status: 403, outcome: 'rejected' });
    expect(await answer(404)).toMatchObject({ status: 404, outcome: null });
    expect(await answer(500)).toMatchObject({ status: 500, outcome: null });
    s.behaviour.handler = (_request, _response, next) => next();
    expect(await post(s.url, gateHeaders())).toMatchObject({ status: 404, outcome: null });
  });

  test('whose handler destroys the response has no outcome, at once', async () => {
    const s = await service({ handlerTimeoutMs: 30_000 });
    const { handler } = s.behaviour;
    const late = vi.fn();
    s.behaviour.handler = (_request, response) => {
      void (async () => {
        await s.legacyPool.query('insert into effects (step) values (1)');
        const broken = Readable.from(
          (async function* () {
            yield await Promise.resolve('half of it');
            throw new Error('the source broke');
          })(),
        );
        pipeline(broken, response, (error) => late(error));
        await waitFor(() => late.mock.calls.length === 1);
        await s.legacyPool.query('insert into effects (step) values (2)').catch(late);
      })();
    };
    const headers = gateHeaders();
    // As without the gate: the connection breaks.
    await expect(post(s.url, headers)).rejects.toThrow();
    await waitFor(() => late.mock.calls.length === 2);
    expect(late.mock.calls).toMatchObject([[{ message: 'the source broke' }], [{ code: 'TURNOUT_JOIN_REFUSED' }]]);
    s.behaviour.handler = handler;
    expect(await post(s.url, headers)).toMatchObject({ status: 201, outcome: 'applied' });
    expect(await s.effects()).toEqual([1]);
  });

  test('whose handler swallowed a failed statement keeps nothing and is not called applied', async () => {
    const s = await service();
    s.behaviour.handler = (_request, response) => {
      void (async () => {
        const client = await s.legacyPool.connect();
        await client.query('begin');
        await client.query('insert into effects (step) values (1)');
        await client.query('select 1 / 0').catch(() => undefined);
        await client.query('commit');
        client.release();
        response.json({ looks: 'fine' });
      })();
    };
    // As it always was: the old code's COMMIT was a rollback, and it did not look.
    expect(await post(s.url, gateHeaders())).toMatchObject({ status: 200, outcome: 'applied' });
    expect(await s.effects()).toEqual([]);
  });

  test('is kept though the caller is gone, if the handler gets to its end', async () => {
    const s = await service();
    const { handler } = s.behaviour;
    let go: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => (go = resolve));
    let entered = false;
    s.behaviour.handler = (request, response, next) => {
      entered = true;
      void gate.then(() => handler(request, response, next));
    };
    const headers = gateHeaders();
    const abort = new AbortController();
    const gone = fetch(s.url, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: '{"orderId":"order 1","step":1}',
      signal: abort.signal,
    });
    await waitFor(() => entered);
    abort.abort();
    await expect(gone).rejects.toThrow();
    expect(await post(s.url, headers)).toMatchObject({ status: 409, outcome: null, error: 'TURNOUT_EFFECT_RUNNING' });
    go();
    await waitFor(async () => (await s.effects()).length === 1);
    expect(await post(s.url, headers)).toMatchObject({ status: 201, outcome: 'duplicate' });
    expect(await s.effects()).toEqual([1]);
  });

  test('whose handler never answers is given up, and what it goes on to write is refused', async () => {
    const s = await service({ handlerTimeoutMs: 1_000 });
    const { handler } = s.behaviour;
    let go: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => (go = resolve));
    const late = vi.fn();
    s.behaviour.handler = (_request, response) => {
      void (async () => {
        await s.legacyPool.query('insert into effects (step) values (1)');
        await gate;
        await s.legacyPool.query('insert into effects (step) values (2)').catch(late);
        response.status(200).json({ late: true });
        late('answered');
      })();
    };
    const headers = gateHeaders();
    expect(await post(s.url, headers)).toMatchObject({ status: 503, outcome: null, error: 'TURNOUT_HANDLER_FAILED' });
    go();
    await waitFor(() => late.mock.calls.length === 2);
    expect(late.mock.calls[0]).toMatchObject([{ code: 'TURNOUT_JOIN_REFUSED' }]);
    expect(await s.effects()).toEqual([]);
    s.behaviour.handler = handler;
    expect(await post(s.url, headers)).toMatchObject({ outcome: 'applied' });
  });

  test('with an answer too large to hold back is rolled back; one too large to keep is applied', async () => {
    const s = await service({ maxAnswerBytes: 200_000, maxKeptBytes: 1_000 });
    let size = 300_000;
    s.behaviour.handler = (_request, response, next) => {
      s.legacyPool.query('insert into effects (step) values (1)').then(() => {
        for (let left = size; left > 0; left -= 10_000) response.write('x'.repeat(10_000));
        response.end();
      }, next);
    };
    const headers = gateHeaders();
    expect(await post(s.url, headers)).toMatchObject({ status: 503, outcome: null, error: 'TURNOUT_ANSWER_TOO_LARGE' });
    expect(await s.effects()).toEqual([]);
    size = 50_000;
    const applied = await post(s.url, headers);
    expect({ ...applied, text: applied.text.length }).toMatchObject({ status: 200, outcome: 'applied', text: 50_000 });
    expect(await post(s.url, headers)).toMatchObject({ status: 200, outcome: 'duplicate', text: '' });
  });

  test.each(['after', 'none'] as const)(
    'larger than an answer may be is let in: the parser %s the gate',
    async (parser) => {
      const s = await service({ parser, maxAnswerBytes: 1_000, maxRequestBytes: 60_000 });
      s.behaviour.handler = (_request, response) => void response.json({ sent: 'large' });
      const order = (bytes: number) => ({ orderId: 'x'.repeat(bytes), step: 1 });
      expect(await post(s.url, gateHeaders(), order(50_000))).toMatchObject({ status: 200, outcome: 'applied' });
      expect(await post(s.url, gateHeaders(), order(70_000))).toMatchObject({
        status: 413,
        outcome: null,
        error: 'TURNOUT_REQUEST_TOO_LARGE',
      });
    },
  );

  test('stays though the draining of its key throws at once', async () => {
    const s = await service({
      order: 'key',
      drain: () => {
        throw new Error('no drain');
      },
    });
    expect(await post(s.url, gateHeaders(numbered(1)))).toMatchObject({ status: 201, outcome: 'applied' });
    expect(await s.effects()).toEqual([1]);
  });

  test('answered in bytes is answered the same again', async () => {
    const s = await service();
    s.behaviour.handler = (_request, response) =>
      void response
        .writeHead(200, { 'content-type': 'text/plain', 'set-cookie': 'a=1' })
        .end(Buffer.from([104, 105, 0]));
    const headers = gateHeaders();
    const first = await post(s.url, headers);
    const again = await post(s.url, headers);
    expect([first.text, again.text]).toEqual(['hi\0', 'hi\0']);
    expect([first.headers.get('set-cookie'), again.headers.get('set-cookie')]).toEqual(['a=1', null]);
    expect(again.outcome).toBe('duplicate');
  });

  test('older than the inbox is skipped', async () => {
    const s = await service({ retentionMs: 60_000 });
    const headers = gateHeaders({ 'turnout-event-time': new Date(Date.now() - 120_000).toISOString() });
    expect(await post(s.url, headers)).toMatchObject({ status: 200, outcome: 'skipped', text: '{}' });
    expect(await s.effects()).toEqual([]);
  });

  test('is had once by many calls at a time', async () => {
    const s = await service({ earlyWaitMs: 5_000 });
    const headers = gateHeaders();
    const answers = await Promise.all(Array.from({ length: 12 }, () => post(s.url, headers)));
    expect(answers.map(({ outcome }) => String(outcome)).toSorted((a, b) => a.localeCompare(b))).toEqual([
      'applied',
      ...Array.from({ length: 11 }, () => 'duplicate'),
    ]);
    expect(await s.effects()).toEqual([1]);
  });
});

describe('the order of a key', () => {
  const step = (number: number) => ({ orderId: 'order 1', step: number });

  test('a call that is ahead is told so, with the last number', async () => {
    const s = await service({ order: 'key' });
    await post(s.url, gateHeaders(numbered(1)), step(1));
    const early = await post(s.url, gateHeaders(numbered(3)), step(3));
    expect(early).toMatchObject({ status: 425, outcome: null, error: 'TURNOUT_EFFECT_EARLY' });
    expect(early.headers.get('turnout-last-number')).toBe('1.1');
    expect(await s.effects()).toEqual([1]);
    expect((await post(s.url, gateHeaders(numbered(5, 2)))).headers.get('turnout-last-number')).toBe('2.0');
  });

  test('a call that is ahead is told so when its wait is over, and not sooner', async () => {
    const s = await service({ order: 'key', earlyWaitMs: 400 });
    await post(s.url, gateHeaders(numbered(1)));
    const began = performance.now();
    expect(await post(s.url, gateHeaders(numbered(3)))).toMatchObject({ status: 425, error: 'TURNOUT_EFFECT_EARLY' });
    // The clock of the test and that of the service are one.
    expect(performance.now() - began).toBeGreaterThanOrEqual(400);
  });

  test('a call that is a little ahead waits, holding nothing', async () => {
    // With one connection, whoever held one while waiting would keep the other from ever coming.
    const s = await service({ order: 'key', earlyWaitMs: 5_000, poolMax: 1 });
    const two = post(s.url, gateHeaders(numbered(2)), step(2));
    await waitFor(() => s.requests() === 1);
    expect(await post(s.url, gateHeaders(numbered(1)), step(1))).toMatchObject({ outcome: 'applied' });
    expect(await two).toMatchObject({ outcome: 'applied' });
    expect(await s.effects()).toEqual([1, 2]);
  });

  test('a number that is past and not known halts the key', async () => {
    const s = await service({ order: 'key' });
    await post(s.url, gateHeaders(numbered(1)), step(1));
    expect(await post(s.url, gateHeaders(numbered(1)), step(1))).toMatchObject({
      status: 503,
      outcome: null,
      error: 'TURNOUT_GATE_HALTED',
    });
    expect(await post(s.url, gateHeaders(numbered(2)), step(2))).toMatchObject({
      status: 503,
      error: 'TURNOUT_GATE_HALTED',
    });
    expect(await post(s.url, gateHeaders({ ...numbered(1), 'turnout-event-key': 'other' }), step(9))).toMatchObject({
      outcome: 'applied',
    });
    expect((await s.pool.query('select kind from turnout.alarm')).rows).toEqual([{ kind: 'unknown-repeat' }]);
  });

  test('whoever applied a number has its successors drained', async () => {
    const drain = vi.fn(() => Promise.resolve());
    const s = await service({ order: 'key', drain });
    const headers = gateHeaders(numbered(1));
    await post(s.url, headers, step(1));
    await post(s.url, headers, step(1));
    expect(drain.mock.calls).toEqual([[{ consumer: 'email', source: 'orders', topic: 'orders', key: 'order 1' }]]);
  });
});
