import fc from 'fast-check';
import * as v from 'valibot';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import {
  decodeEnvelope,
  defineEvent,
  defineTopic,
  effectKeyOf,
  encodeEnvelope,
  formatRoutes,
  formatSequence,
  murmur2,
  parseRoutes,
  partitionOf,
  validateEventData,
} from '../../src/event/index.ts';
import type { Envelope, Stamp } from '../../src/event/index.ts';

const OrderPlaced = defineEvent({
  name: 'orders.order-placed',
  version: 1,
  topic: 'orders',
  schema: z.object({
    orderId: z.string().min(1),
    total: z.number(),
    lines: z.array(z.object({ sku: z.string() })).optional(),
  }),
  key: (order) => order.orderId,
});

describe('partitionOf', () => {
  // From org.apache.kafka.common.utils.UtilsTest.testMurmur2: a key must land where Java clients and Debezium put it.
  it.each([
    ['21', -973932308],
    ['foobar', -790332482],
    ['a-little-bit-long-string', -985981536],
    ['a-little-bit-longer-string', -1486304829],
    ['lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8', -58897971],
    ['abc', 479470107],
  ])('hashes %s as Kafka does', (key, hash) => {
    expect(murmur2(Buffer.from(key))).toBe(hash);
  });

  it('stays within the partitions, and repeats itself', () => {
    fc.assert(
      fc.property(
        fc.option(fc.string({ unit: 'grapheme' })),
        fc.bigInt({ min: 1n, max: 2n ** 62n }),
        fc.integer({ min: 1, max: 500 }),
        (key, seq, partitions) => {
          const partition = partitionOf(key, seq, partitions);
          expect(partition).toBeGreaterThanOrEqual(0);
          expect(partition).toBeLessThan(partitions);
          expect(partitionOf(key, seq, partitions)).toBe(partition);
        },
      ),
    );
  });
});

describe('routes', () => {
  const name = fc.stringMatching(/^[a-z0-9][a-z0-9._-]{0,20}$/);
  const turn = fc.option(
    fc.record({
      generation: fc.integer({ min: 1, max: 999_999_999 }),
      number: fc.integer({ min: 1, max: 999_999_999_999_999 }),
    }),
    { nil: undefined },
  );
  const stamps = fc.uniqueArray(
    fc.record<Stamp>({
      consumer: name,
      route: fc.constantFrom('rpc', 'event'),
      epoch: fc.integer({ min: 1, max: 1_000_000 }),
      shadow: fc.boolean(),
      turn,
    }),
    { selector: (stamp) => stamp.consumer, minLength: 1 },
  );

  it('reads what it writes', () => {
    fc.assert(
      fc.property(stamps, (given) => {
        expect(parseRoutes(formatRoutes(given))).toEqual(given);
      }),
    );
  });

  it('keeps what it knows of a publisher that writes more', () => {
    expect(
      parseRoutes('email=rpc;epoch=3;lane=fast;shadow=1;generation=1;number=17, loyalty=event;epoch=1;x='),
    ).toEqual([
      { consumer: 'email', route: 'rpc', epoch: 3, shadow: true, turn: { generation: 1, number: 17 } },
      { consumer: 'loyalty', route: 'event', epoch: 1, shadow: false, turn: undefined },
    ]);
  });

  it.each([
    '',
    'email',
    'email=maybe;epoch=1',
    'email=rpc',
    'email=rpc;epoch=one',
    'email=rpc;epoch=1;number=1',
    'email=rpc;epoch=1;generation=1',
    'email=rpc;epoch=1;epoch=2',
    'email=rpc;epoch=1;generation=1;number=',
    'email=rpc;shadow=1',
    'email=rpc;epoch=1;',
    'email=rpc;epoch=1,loyalty=rpc;epoch=1',
    'email=rpc;epoch=1, email=event;epoch=2',
    'Email=rpc;epoch=1',
    'email=rpc;epoch=1;generation=1;number=99999999999999999999',
  ])('refuses %j', (text) => {
    expect(() => parseRoutes(text)).toThrowError(expect.objectContaining({ code: 'TURNOUT_ROUTES_MALFORMED' }));
  });

  it('gives effect keys that BullMQ and HTTP take: no colon, no integer', () => {
    expect(effectKeyOf('email', '0b9c0f0e-3a55-4b27-8d43-111111111111')).toBe(
      'email.0b9c0f0e-3a55-4b27-8d43-111111111111',
    );
  });
});

describe('envelope', () => {
  const envelope: Envelope = {
    id: '0b9c0f0e-3a55-4b27-8d43-111111111111',
    type: 'orders.order-placed',
    version: 2,
    source: 'orders',
    topic: 'orders',
    key: 'order-1',
    time: new Date('2026-11-23T10:11:12.345Z'),
    payload: '{"orderId":"order-1"}',
    seq: 42n,
    sequence: { generation: 3, number: 17n },
    routes: 'email=rpc;epoch=1',
    headers: { traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01' },
    refused: undefined,
  };

  it('comes back as it went', () => {
    expect(decodeEnvelope('orders', encodeEnvelope(envelope))).toEqual(envelope);
  });

  it('comes back without what a publisher other than the relay leaves out', () => {
    const bare = { ...envelope, key: null, seq: undefined, sequence: undefined, routes: undefined, headers: {} };
    expect(decodeEnvelope('orders', encodeEnvelope(bare))).toEqual(bare);
  });

  it('writes a sequence that sorts as text', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 1n, max: 2n ** 63n }), fc.bigInt({ min: 1n, max: 2n ** 63n }), (a, b) => {
        const [left, right] = [
          formatSequence({ generation: 1, number: a }),
          formatSequence({ generation: 1, number: b }),
        ];
        expect(left < right).toBe(a < b);
      }),
    );
  });

  it.each(['ce_id', 'ce_type', 'ce_source', 'ce_time'])('refuses a message without %s', (header) => {
    const message = encodeEnvelope(envelope);
    const headers = { ...message.headers };
    delete headers[header];
    expect(() => decodeEnvelope('orders', { ...message, headers })).toThrowError(
      expect.objectContaining({ code: 'TURNOUT_ENVELOPE_MALFORMED', details: { topic: 'orders', field: header } }),
    );
  });

  it.each([
    ['ce_sequence', '17'],
    ['turnout-seq', '-1'],
    ['ce_time', 'yesterday'],
  ])('refuses a message with %s %s', (header, value) => {
    const message = encodeEnvelope(envelope);
    expect(() =>
      decodeEnvelope('orders', { ...message, headers: { ...message.headers, [header]: value } }),
    ).toThrowError(expect.objectContaining({ code: 'TURNOUT_ENVELOPE_MALFORMED' }));
  });

  it('refuses a tombstone', () => {
    expect(() => decodeEnvelope('orders', { ...encodeEnvelope(envelope), value: null })).toThrowError(/value/);
  });
});

describe('validateEventData', () => {
  it('gives back what fits the schema', async () => {
    await expect(validateEventData(OrderPlaced, { orderId: 'o1', total: 3 })).resolves.toEqual({
      orderId: 'o1',
      total: 3,
    });
  });

  it('names the path of what does not fit', async () => {
    const bad = { orderId: 'o1', total: 3, lines: [{ sku: 'a' }, { sku: 7 as unknown as string }] };
    await expect(validateEventData(OrderPlaced, bad)).rejects.toMatchObject({
      code: 'TURNOUT_EVENT_DATA_INVALID',
      details: { path: 'data.lines.1.sku' },
    });
  });

  it('takes any Standard Schema', async () => {
    const Paid = defineEvent({
      name: 'orders.paid',
      version: 1,
      topic: 'orders',
      schema: v.object({ id: v.string() }),
      key: (paid) => paid.id,
    });
    await expect(validateEventData(Paid, { id: 'p1' })).resolves.toEqual({ id: 'p1' });
    await expect(validateEventData(Paid, { id: 1 as unknown as string })).rejects.toMatchObject({
      details: { path: 'data.id' },
    });
  });

  const Anything = defineEvent({ name: 'any', version: 1, topic: 'any', schema: z.any(), order: 'none' });

  const circle: { self?: unknown } = {};
  circle.self = circle;
  it.each([
    ['a Date', { at: new Date(0) }, 'data.at'],
    ['undefined in an array', { list: [1, undefined] }, 'data.list.1'],
    ['NaN', { n: Number.NaN }, 'data.n'],
    ['a bigint', { n: 1n }, 'data.n'],
    ['a Map', { m: new Map() }, 'data.m'],
    ['a function', { f: () => 1 }, 'data.f'],
    ['NUL', { s: 'a\0b' }, 'data.s'],
    ['half a surrogate pair', { s: '\ud800' }, 'data.s'],
    ['undefined alone', undefined, 'data'],
    ['a circle', circle, `data${'.self'.repeat(101)}`],
  ])('refuses %s, which JSON or Postgres would lose', async (_what, data, path) => {
    await expect(validateEventData(Anything, data)).rejects.toMatchObject({
      code: 'TURNOUT_EVENT_DATA_INVALID',
      details: { path },
    });
  });

  it('accepts whatever comes back from JSON unchanged', async () => {
    await fc.assert(
      fc.asyncProperty(fc.jsonValue(), async (value) => {
        fc.pre(!JSON.stringify(value).includes('\\u0000'));
        await expect(validateEventData(Anything, value)).resolves.toEqual(value);
      }),
    );
  });
});

describe('definitions', () => {
  it.each([
    ['a name in capitals', { name: 'Orders' }, 'name'],
    ['version 0', { version: 0 }, 'version'],
    ['no schema', { schema: {} }, 'schema'],
    ['order by key without a key', { key: undefined }, 'key'],
    ['a bad topic', { topic: 'or ders' }, 'name'],
  ])('refuses %s', (_what, change, path) => {
    const definition = { name: 'a', version: 1, schema: z.object({}), key: () => 'k', topic: 'a', ...change };
    expect(() => defineEvent(definition as never)).toThrowError(
      expect.objectContaining({ code: 'TURNOUT_DEFINITION_INVALID', details: { path } }),
    );
  });

  it('refuses a topic without partitions', () => {
    expect(() => defineTopic({ name: 'a', partitions: 0 })).toThrowError(
      expect.objectContaining({ details: { path: 'partitions' } }),
    );
  });
});
