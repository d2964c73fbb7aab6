import { setImmediate as nextTurn } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { TurnoutError } from '../../src/errors/index.ts';
import { encodeEnvelope } from '../../src/event/index.ts';
import type { Message } from '../../src/event/index.ts';
import { enableFailpoint } from '../../src/lifecycle/index.ts';
import { createChain } from '../../src/relay/chain.ts';
import type { ChainLimits } from '../../src/relay/chain.ts';
import { placeholderOf, toBatches } from '../../src/relay/messages.ts';
import { createCounter } from '../../src/relay/numbers.ts';
import type { PartitionBatch } from '../../src/relay/publisher.ts';
import { sendOrReplace } from '../../src/relay/refusal.ts';
import type { Row } from '../../src/relay/tick-store.ts';

const message = (key: string): Message => ({
  key,
  value: Buffer.from('{}'),
  headers: { ce_id: key, ce_sequence: '000001-00000000000000000001', mine: 'x' },
});

/** A broker that keeps what it is sent, fails the sends that it is told to fail, and answers in random order. */
function broker(fails: (send: number) => boolean) {
  const log = new Map<string, (string | null)[]>();
  const busy = new Set<string>();
  const seen = { sends: 0, overlaps: 0, inFlight: 0, mostInFlight: 0, sendsAfterFailure: 0, failed: false };
  async function send(batches: readonly PartitionBatch[]): Promise<void> {
    const number = seen.sends++;
    if (seen.failed) seen.sendsAfterFailure++;
    seen.mostInFlight = Math.max(seen.mostInFlight, ++seen.inFlight);
    for (const { topic, partition } of batches) {
      const name = `${topic}/${partition}`;
      if (busy.has(name)) seen.overlaps++;
      busy.add(name);
    }
    for (let turns = (number * 7) % 5; turns >= 0; turns--) await nextTurn();
    const failing = fails(number);
    for (const { topic, partition, messages } of batches) {
      const name = `${topic}/${partition}`;
      busy.delete(name);
      if (!failing) log.set(name, [...(log.get(name) ?? []), ...messages.map(({ key }) => key)]);
    }
    seen.inFlight--;
    if (failing) {
      // From the next turn on: by then the chain has heard of it.
      setImmediate(() => (seen.failed = true));
      throw new TurnoutError('TURNOUT_PUBLISH_FAILED', `Send ${number} failed.`);
    }
  }
  return { send, log, seen };
}

const limits = fc.record({
  sends: fc.integer({ min: 1, max: 4 }),
  batchMessages: fc.integer({ min: 1, max: 5 }),
  batchBytes: fc.constantFrom(1, 1_000, 1_000_000),
  pages: fc.integer({ min: 1, max: 4 }),
});
/** Pages as the partition of each of their events. */
const plan = fc.array(fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 12 }), {
  minLength: 1,
  maxLength: 10,
});

function pagesOf(planned: readonly (readonly number[])[]): PartitionBatch[][] {
  let event = 0;
  return planned.map((page) => {
    const partitions = new Map<number, Message[]>();
    for (const partition of page)
      partitions.set(partition, [...(partitions.get(partition) ?? []), message(String(event++))]);
    return [...partitions].map(([partition, messages]) => ({ topic: 't', partition, messages }));
  });
}

async function publish(
  pages: readonly PartitionBatch[][],
  send: (batches: readonly PartitionBatch[]) => Promise<void>,
  within: ChainLimits,
) {
  const chain = createChain<number>(send, within);
  try {
    for (const [index, page] of pages.entries()) await chain.push(page, index);
    await chain.flush();
    return { chain, error: undefined };
  } catch (error) {
    await chain.flush().catch(() => undefined);
    return { chain, error };
  }
}

function written(pages: readonly PartitionBatch[][], partition: number): (string | null)[] {
  return pages.flatMap((page) =>
    page.filter((batch) => batch.partition === partition).flatMap(({ messages }) => messages.map(({ key }) => key)),
  );
}

describe('a chain of sends', () => {
  test('keeps the order of each partition, never with two sends of one in flight', async () => {
    await fc.assert(
      fc.asyncProperty(plan, limits, async (planned, within) => {
        const pages = pagesOf(planned);
        const { send, log, seen } = broker(() => false);
        const { chain, error } = await publish(pages, send, within);
        expect(error).toBeUndefined();
        expect(seen.overlaps).toBe(0);
        expect(seen.mostInFlight).toBeLessThanOrEqual(within.sends);
        expect(chain.acknowledged()).toBe(pages.length - 1);
        for (const partition of [0, 1, 2, 3, 4])
          expect(log.get(`t/${partition}`) ?? []).toEqual(written(pages, partition));
      }),
    );
  });

  test('once broken, starts no further send, and acknowledges no page that is not wholly written', async () => {
    await fc.assert(
      fc.asyncProperty(plan, limits, fc.nat({ max: 12 }), async (planned, within, failing) => {
        const pages = pagesOf(planned);
        const { send, log, seen } = broker((number) => number === failing);
        const { chain, error } = await publish(pages, send, within);
        expect(error === undefined).toBe(seen.sends <= failing);
        // Sends that were in flight already may end; what starts after the failure is known is a hole in the making.
        expect(seen.sendsAfterFailure).toBe(0);
        expect(seen.inFlight).toBe(0);
        for (const partition of [0, 1, 2, 3, 4]) {
          const there = log.get(`t/${partition}`) ?? [];
          // What is written is a beginning of what was to be written: no hole.
          expect(there).toEqual(written(pages, partition).slice(0, there.length));
          const acknowledged = pages.slice(0, (chain.acknowledged() ?? -1) + 1);
          expect(there.length).toBeGreaterThanOrEqual(written(acknowledged, partition).length);
        }
      }),
    );
  });

  test('with the failpoint on, leaves holes: the property above is about something', async () => {
    const off = enableFailpoint('relay.unchained-sends');
    try {
      const pages = pagesOf([[0], [0], [0]]);
      const { send, log } = broker((number) => number === 1);
      const { error } = await publish(pages, send, { sends: 1, batchMessages: 1, batchBytes: 1_000, pages: 1 });
      expect(error).toMatchObject({ code: 'TURNOUT_PUBLISH_FAILED' });
      expect(log.get('t/0')).toEqual(['0', '2']);
    } finally {
      off();
    }
  });

  test('can be broken from outside', async () => {
    const { send } = broker(() => false);
    const chain = createChain<number>(send);
    chain.break(new TurnoutError('TURNOUT_DATABASE_UNREACHABLE', 'Lost.'));
    await expect(chain.push(pagesOf([[0]])[0]!, 0)).rejects.toMatchObject({ code: 'TURNOUT_DATABASE_UNREACHABLE' });
    await expect(chain.flush()).rejects.toMatchObject({ code: 'TURNOUT_DATABASE_UNREACHABLE' });
  });

  test('gives errors of any publisher a code', async () => {
    const chain = createChain<number>(() => Promise.reject(new Error('socket hang up')));
    await chain.push(pagesOf([[0]])[0]!, 0).catch(() => undefined);
    await expect(chain.flush()).rejects.toMatchObject({ code: 'TURNOUT_PUBLISH_FAILED' });
  });
});

describe('messages that the broker refuses', () => {
  test('are replaced in their place, and nothing else changes', async () => {
    await fc.assert(
      fc.asyncProperty(plan, fc.func(fc.boolean()), async (planned, refuses) => {
        const [batches] = [pagesOf([planned.flat()])[0]!];
        const log = new Map<number, Message[]>();
        const isRefused = (each: Message): boolean =>
          each.headers['turnout-refused'] === undefined && refuses(each.key);
        const publisher = {
          async send(all: readonly PartitionBatch[]) {
            const bad = all.find(({ messages }) => messages.some(isRefused));
            for (const { partition, messages } of all)
              if (!messages.some(isRefused)) log.set(partition, [...(log.get(partition) ?? []), ...messages]);
            if (bad !== undefined)
              throw new TurnoutError('TURNOUT_PAYLOAD_TOO_LARGE', 'Too large.', {
                details: { topic: 't', partition: bad.partition },
              });
          },
        };
        const refused: (string | null)[] = [];
        await sendOrReplace(publisher, batches, ({ message: { key } }) => refused.push(key));
        for (const { partition, messages } of batches) {
          const there = (log.get(partition) ?? []).map(({ key }) => key);
          const wanted = messages.map(({ key }) => key);
          // Repeats of a whole batch may come first; the order in which each first appears is the one wanted.
          expect([...new Set(there)]).toEqual(wanted);
        }
        const replaced = [...log.values()].flat().filter(({ headers }) => headers['turnout-refused'] !== undefined);
        expect(new Set(replaced.map(({ key }) => key))).toEqual(new Set(refused));
      }),
    );
  });

  test('are told by their size as a whole', async () => {
    const reasons: string[] = [];
    const publisher = {
      send: ([batch]: readonly PartitionBatch[]) =>
        batch?.messages[0]?.headers['turnout-refused'] === undefined
          ? Promise.reject(new TurnoutError('TURNOUT_PAYLOAD_TOO_LARGE', 'Too large.'))
          : Promise.resolve(),
    };
    const large: Message = { key: 'é', value: Buffer.from('{}'), headers: { ce_id: '1', mine: 'x'.repeat(100) } };
    const batch = { topic: 'orders', partition: 0, messages: [large] };
    await sendOrReplace(publisher, [batch], ({ reason }) => reasons.push(reason));
    expect(reasons).toEqual([`too large for the broker: ${2 + 2 + 5 + 1 + 4 + 100} bytes`]);
  });

  test('keep id and number in their placeholder, and lose payload and own headers', () => {
    expect(placeholderOf(message('1'), 'too large')).toEqual({
      key: '1',
      value: Buffer.from('null'),
      headers: { ce_id: '1', ce_sequence: '000001-00000000000000000001', 'turnout-refused': 'too large' },
    });
  });

  test('are not waited for in vain: a broker that takes not even the placeholder fails the send', async () => {
    const publisher = { send: () => Promise.reject(new TurnoutError('TURNOUT_PAYLOAD_TOO_LARGE', 'Too large.')) };
    await expect(sendOrReplace(publisher, pagesOf([[0]])[0]!, () => undefined)).rejects.toMatchObject({
      code: 'TURNOUT_PUBLISH_FAILED',
    });
  });
});

describe('rows as messages', () => {
  const row = (seq: number, key: string | null): Row => [
    String(seq),
    `00000000-0000-4000-8000-${String(seq).padStart(12, '0')}`,
    'orders',
    't',
    key,
    'orders.order-placed',
    '2',
    '{"a": 1}',
    'email=rpc;epoch=1',
    '{"traceparent":"00-1-2-03"}',
    '2026-11-23 03:36:37.12+00',
  ];

  test('carry the whole envelope', () => {
    const [batch] = toBatches(
      [row(7, 'order-1')],
      createCounter({}, () => 3),
      () => 1,
    );
    expect(batch).toEqual({
      topic: 't',
      partition: 0,
      messages: [
        {
          key: 'order-1',
          value: Buffer.from('{"a": 1}'),
          headers: {
            ce_specversion: '1.0',
            ce_id: '00000000-0000-4000-8000-000000000007',
            ce_type: 'orders.order-placed',
            ce_source: 'orders',
            ce_time: '2026-11-23T03:36:37.120Z',
            ce_partitionkey: 'order-1',
            ce_sequence: '000003-00000000000000000001',
            'content-type': 'application/json',
            'turnout-version': '2',
            'turnout-seq': '7',
            'turnout-routes': 'email=rpc;epoch=1',
            traceparent: '00-1-2-03',
          },
        },
      ],
    });
  });

  test('are what encodeEnvelope makes of them', () => {
    const text = fc.string({ minLength: 1, maxLength: 8 });
    const event = fc.record({
      key: fc.option(text),
      time: fc.date({
        min: new Date('1990-01-01T00:00:00Z'),
        max: new Date('2100-01-01T00:00:00Z'),
        noInvalidDate: true,
      }),
      routes: fc.option(text),
      headers: fc.option(fc.dictionary(fc.stringMatching(/^x-[a-z]{1,5}$/), text, { maxKeys: 3 })),
    });
    fc.assert(
      fc.property(event, ({ key, time, routes, headers }) => {
        // As Postgres writes it: no trailing zeros, no fraction at all for whole seconds.
        const written = `${time
          .toISOString()
          .replace('T', ' ')
          .replace(/\.?0*Z$/, '')}+00`;
        const stored = [...row(7, key)];
        stored[8] = routes;
        stored[9] = headers === null ? null : JSON.stringify(headers);
        stored[10] = written;
        const [batch] = toBatches(
          [stored],
          createCounter({}, () => 1),
          () => 1,
        );
        const expected = encodeEnvelope({
          id: stored[1]!,
          type: stored[5]!,
          version: 2,
          source: stored[2]!,
          topic: 't',
          key,
          time,
          payload: stored[7]!,
          seq: 7n,
          sequence: { generation: 1, number: 1n },
          routes: routes ?? undefined,
          headers: headers ?? {},
          refused: undefined,
        });
        expect(batch?.messages).toEqual([expected]);
      }),
    );
  });

  test('are grouped by partition in the order of seq, the same each time', () => {
    fc.assert(
      fc.property(
        fc.array(fc.option(fc.string({ maxLength: 3 })), { maxLength: 60 }),
        fc.integer({ min: 1, max: 7 }),
        (keys, partitions) => {
          const rows = keys.map((key, index) => row(index + 1, key));
          const make = (): PartitionBatch[] =>
            toBatches(
              rows,
              createCounter({}, () => 1),
              () => partitions,
            );
          const batches = make();
          expect(make()).toEqual(batches);
          expect(batches.flatMap(({ messages }) => messages)).toHaveLength(rows.length);
          for (const { messages } of batches) {
            const seqs = messages.map(({ headers }) => Number(headers['turnout-seq']));
            expect(seqs).toEqual([...seqs].sort((a, b) => a - b));
            expect(messages.map(({ headers }) => Number(headers['ce_sequence']?.split('-')[1]))).toEqual(
              messages.map((_, index) => index + 1),
            );
          }
        },
      ),
    );
  });
});
