// What every helper has to do by which a switchover makes its calls, whatever its library and protocol. The suite tells a
// callee what to do; the driver does it in its protocol.
import { randomUUID } from 'node:crypto';
import { afterEach, describe, expect, test } from 'vitest';
import type { RpcAnswer, RpcCall } from 'turnout';
import { afterAnswer, callHeaders } from '../../src/switchover/index.ts';
import { waitFor } from '../support/index.ts';

/** One helper as this suite needs it. */
export interface CallerDriver {
  readonly name: string;
  readonly features: CallerFeatures;
  start(callee: Callee): Promise<RunningCallee>;
}

export interface CallerFeatures {
  /** The protocol has redirects. */
  readonly redirects: boolean;
  /** An answer can begin and not end. */
  readonly stalls: boolean;
}

export interface RunningCallee {
  /** Calls it with the helper. `data` is JSON. */
  call(call: RpcCall, data: unknown): Promise<RpcAnswer>;
  /** Nobody listens there any more afterwards. */
  stop(): Promise<void>;
}

/** Asked once for each request that arrives. */
export type Callee = (received: Received) => CalleeDeed;

export interface Received {
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string | undefined>>;
  /** The bytes, in whichever form compares them. */
  readonly body: string;
}

export type CalleeDeed =
  | { readonly do: 'answer'; readonly headers: Record<string, string>; readonly body: unknown }
  /** The definitive refusal of the protocol. */
  | { readonly do: 'refuse'; readonly headers: Record<string, string>; readonly message: string }
  /** The gate refuses with this `turnout-error`. */
  | { readonly do: 'gate'; readonly error: string; readonly headers: Record<string, string> }
  /** The service fails; no headers of Turnout. */
  | { readonly do: 'fail'; readonly message: string }
  | { readonly do: 'redirect' }
  | { readonly do: 'hang up' }
  | { readonly do: 'never' }
  | { readonly do: 'stall' };

/** What every caller's helper has to do. */
export function callerContract(driver: CallerDriver): void {
  describe(`Caller: ${driver.name}`, () => {
    const running: RunningCallee[] = [];
    afterEach(async () => {
      await Promise.all(running.splice(0).map((service) => service.stop()));
    });

    async function callee(does: Callee) {
      const received: Received[] = [];
      const started = await driver.start((request) => {
        received.push(request);
        return does(request);
      });
      running.push(started);
      return { received, call: (call: RpcCall, data: unknown) => started.call(call, data) };
    }

    const data = { orderId: 'order 1', note: 'für später' };
    const applied: CalleeDeed = { do: 'answer', headers: { 'turnout-outcome': 'applied' }, body: { sent: 'order 1' } };

    test('sends the headers of the call', async () => {
      const { call, received } = await callee(() => applied);
      const rpc = callOf();
      await call(rpc, data);
      expect(received).toHaveLength(1);
      expect(received[0]!.headers).toMatchObject(rpc.headers);
    });

    test('gives the answer, with headers in lower case', async () => {
      const { call } = await callee(() => ({
        ...applied,
        headers: { 'Turnout-Outcome': 'duplicate', 'X-Mail': 'yes' },
      }));
      const answer = await call(callOf(), data);
      expect(answer).toMatchObject({
        status: 200,
        headers: { 'turnout-outcome': 'duplicate', 'x-mail': 'yes' },
        body: { sent: 'order 1' },
      });
    });

    test('gives a refusal as an answer', async () => {
      const { call } = await callee(() => ({
        do: 'refuse',
        headers: { 'turnout-outcome': 'rejected' },
        message: 'sold out',
      }));
      const answer = await call(callOf(), data);
      expect(meaningOf(answer)).toMatchObject({ kind: 'done', outcome: 'rejected' });
      expect(answer.status).toBeGreaterThanOrEqual(400);
      expect(JSON.stringify(answer.body)).toContain('sold out');
    });

    test.each([
      ['TURNOUT_EFFECT_RUNNING', {}, { kind: 'poll' }],
      [
        'TURNOUT_EFFECT_EARLY',
        { 'turnout-last-number': '1.1' },
        { kind: 'resend', after: { generation: 1, number: 1 } },
      ],
      ['TURNOUT_EFFECT_KEY_REUSED', {}, { kind: 'pending', needsSomeone: true }],
      ['TURNOUT_UNAUTHENTICATED', {}, { kind: 'pending', needsSomeone: true }],
      ['TURNOUT_HANDLER_FAILED', {}, { kind: 'pending', needsSomeone: false }],
    ])('gives what the gate refuses with as an answer: %s', async (error, headers, meaning) => {
      const { call } = await callee(() => ({ do: 'gate', error, headers }));
      expect(meaningOf(await call(callOf(3), data))).toMatchObject(meaning);
    });

    test('gives a failure as an answer, and asks once', async () => {
      const { call, received } = await callee(() => ({ do: 'fail', message: 'out of paper' }));
      const answer = await call(callOf(), data);
      expect(answer.status).toBeGreaterThanOrEqual(500);
      expect(meaningOf(answer)).toMatchObject({ kind: 'pending', needsSomeone: false });
      expect(received).toHaveLength(1);
    });

    test('rejects when there is no answer, and asks once', async () => {
      const { call, received } = await callee(() => ({ do: 'hang up' }));
      await expect(call(callOf(), data)).rejects.toThrow();
      expect(received).toHaveLength(1);
    });

    test('rejects when nobody is there', async () => {
      const { call } = await callee(() => applied);
      await running.splice(0)[0]!.stop();
      await expect(call(callOf(), data)).rejects.toThrow();
    });

    test.each(['never', ...(driver.features.stalls ? (['stall'] as const) : [])] as const)(
      'is bounded by the signal when the callee’s answer is: %s',
      async (deed) => {
        const { call, received } = await callee(() => ({ do: deed }));
        const abort = new AbortController();
        const called = call({ ...callOf(), signal: abort.signal }, data);
        called.catch(() => undefined);
        await waitFor(() => received.length === 1);
        abort.abort(new Error('too late'));
        await expect(called).rejects.toThrow();
      },
    );

    test('makes no call when the signal is already aborted', async () => {
      const { call, received } = await callee(() => applied);
      await expect(call({ ...callOf(), signal: AbortSignal.abort() }, data)).rejects.toThrow();
      expect(received).toEqual([]);
    });

    test.runIf(driver.features.redirects)('follows no redirect', async () => {
      const { call, received } = await callee(() => (received.length > 1 ? applied : { do: 'redirect' }));
      const answer = await call(callOf(), data);
      expect(answer.status).toBe(307);
      expect(meaningOf(answer)).toMatchObject({ kind: 'pending' });
      expect(received).toHaveLength(1);
    });

    test('sends the same body at every attempt', async () => {
      const { call, received } = await callee(() => applied);
      const rpc = callOf();
      for (const attempt of [1, 2, 3]) await call({ ...rpc, attempt }, data);
      expect(received).toHaveLength(3);
      expect(new Set(received.map(({ body }) => body)).size).toBe(1);
      expect(received[0]!.body.length).toBeGreaterThan(0);
      expect(new Set(received.map(({ headers }) => headers['idempotency-key'])).size).toBe(1);
    });
  });
}

/** The call of one event; numbered calls are of an ordered switchover. */
function callOf(number?: number): RpcCall {
  const id = randomUUID();
  const event = {
    id,
    type: 'orders.order-placed',
    version: 1,
    source: 'orders',
    topic: 'orders',
    key: 'Bestellung für #1',
    time: new Date(),
    headers: {},
    data: {},
  };
  return {
    headers: callHeaders('email', event, number === undefined ? undefined : { generation: 1, number }),
    signal: new AbortController().signal,
    effectKey: `email.${id}`,
    attempt: 1,
    timeoutMs: 10_000,
  };
}

function meaningOf({ status, headers }: RpcAnswer): ReturnType<typeof afterAnswer> {
  return afterAnswer({ generation: 1, number: 3 }, { kind: 'answer', status, headers });
}
