import { describe, expect, test } from 'vitest';
import { z } from 'zod';
import type { TurnoutError } from '../../src/errors/index.ts';
import { defineEvent, defineTopic } from '../../src/event/index.ts';
import { prepareEvents } from '../../src/outbox/prepare.ts';
import type { PublishRequest } from '../../src/outbox/prepare.ts';

const OrderPlaced = defineEvent({
  name: 'orders.order-placed',
  version: 2,
  topic: defineTopic({ name: 'orders', maxBytes: 200 }),
  schema: z.object({
    orderId: z.string(),
    lines: z.array(z.object({ sku: z.string(), count: z.number() })).default([]),
    more: z.unknown().optional(),
  }),
  key: (order) => order.orderId,
});

const Anything = defineEvent({
  name: 'orders.anything',
  version: 1,
  topic: 'orders',
  order: 'none',
  schema: z.unknown(),
});

async function refusal(request: Omit<PublishRequest, 'definition'> & Partial<PublishRequest>): Promise<unknown[]> {
  const error: TurnoutError = await prepareEvents([{ definition: OrderPlaced, ...request }]).then(
    () => expect.unreachable('it was accepted'),
    (reason: TurnoutError) => reason,
  );
  return [error.code, error.details['path']];
}

describe('an event is refused before anything is sent', () => {
  test.each([
    ['data.orderId', { lines: [] }],
    [
      'data.lines.1.count',
      {
        orderId: 'a',
        lines: [
          { sku: 's', count: 1 },
          { sku: 't', count: 'two' },
        ],
      },
    ],
    ['data.more.at', { orderId: 'a', more: { at: new Date() } }],
    ['data.more.0', { orderId: 'a', more: [undefined] }],
    ['data.more', { orderId: 'a', more: Number.NaN }],
    ['data.more', { orderId: 'a', more: Object.create(Object.create(null)) as object }],
    ['data.more', { orderId: 'a', more: 1n }],
    ['data.more', { orderId: 'a', more: 'nul \0' }],
    ['data.more', { orderId: 'a', more: 'half \ud800' }],
  ])('bad data, with its path %s', async (path, data) => {
    expect(await refusal({ data })).toEqual(['TURNOUT_EVENT_DATA_INVALID', path]);
  });

  test('no data at all', async () => {
    for (const data of [null, undefined]) {
      expect(await refusal({ definition: Anything, data })).toEqual(['TURNOUT_EVENT_DATA_INVALID', 'data']);
    }
  });

  test('bad keys', async () => {
    const keyed = (key: unknown) =>
      defineEvent({
        name: 'orders.keyed',
        version: 1,
        topic: 'orders',
        schema: z.object({}),
        key: () => key as string,
      });
    expect(await refusal({ data: { orderId: '' } })).toEqual(['TURNOUT_KEY_MISSING', 'key']);
    expect(await refusal({ definition: keyed(undefined), data: {} })).toEqual(['TURNOUT_KEY_MISSING', 'key']);
    expect(await refusal({ definition: keyed(7), data: {} })).toEqual(['TURNOUT_EVENT_DATA_INVALID', 'key']);
    expect(await refusal({ definition: keyed('x'.repeat(1001)), data: {} })).toEqual([
      'TURNOUT_EVENT_DATA_INVALID',
      'key',
    ]);
  });

  test('headers that the relay writes, or that are no text', async () => {
    const data = { orderId: 'a' };
    expect(await refusal({ data, headers: { CE_Id: 'x' } })).toEqual(['TURNOUT_EVENT_DATA_INVALID', 'headers.CE_Id']);
    expect(await refusal({ data, headers: { tenant: 7 as never } })).toEqual([
      'TURNOUT_EVENT_DATA_INVALID',
      'headers.tenant',
    ]);
  });

  test('ids that are none, or are used twice', async () => {
    expect(await refusal({ data: { orderId: 'a' }, id: '1' })).toEqual(['TURNOUT_EVENT_DATA_INVALID', 'id']);
    const id = '0c7d3c9e-3f0a-4a39-9f39-4f1a2f9f2a11';
    const twice = [id, id.toUpperCase()].map((each) => ({ definition: OrderPlaced, data: { orderId: 'a' }, id: each }));
    await expect(prepareEvents(twice)).rejects.toMatchObject({
      code: 'TURNOUT_EVENT_DATA_INVALID',
      details: { path: 'id', index: 1 },
    });
  });

  test('a payload over the limit of its topic, in bytes', async () => {
    expect(await refusal({ data: { orderId: 'a', more: 'é'.repeat(90) } })).toEqual([
      'TURNOUT_PAYLOAD_TOO_LARGE',
      undefined,
    ]);
    await expect(
      prepareEvents([{ definition: OrderPlaced, data: { orderId: 'a', more: 'e'.repeat(90) } }]),
    ).resolves.toHaveLength(1);
  });

  test('headers that do not fit in the same limit', async () => {
    const data = { orderId: 'a' };
    const of = (bytes: number): Partial<PublishRequest> => ({ data, headers: { trace: 'x'.repeat(bytes) } });
    expect(await refusal({ data, ...of(200) })).toEqual(['TURNOUT_PAYLOAD_TOO_LARGE', undefined]);
    await expect(prepareEvents([{ definition: OrderPlaced, data, ...of(100) }])).resolves.toHaveLength(1);
  });

  test('which of several it was', async () => {
    const bad = [{ orderId: 'a' }, { orderId: 1 }].map((data) => ({ definition: OrderPlaced, data }));
    await expect(prepareEvents(bad)).rejects.toMatchObject({ details: { path: 'data.orderId', index: 1 } });
  });
});

test('what is stored is what the schema gives, defaults included', async () => {
  const [event] = await prepareEvents([{ definition: OrderPlaced, data: { orderId: 'a', unknown: 1 } }]);
  expect(event).toEqual({ type: 'orders.order-placed', version: 2, key: 'a', data: { orderId: 'a', lines: [] } });
});
