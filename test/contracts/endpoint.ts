// What every adapter of `Endpoint` has to do, whatever its framework and protocol. The suite tells an old handler what to do
// (a `Deed`); the adapter's driver does it in the manner of its framework, and says what came back in words of HTTP.
import { randomUUID } from 'node:crypto';
import type { Pool } from 'pg';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { createEndpoint } from 'turnout';
import type { Endpoint, EndpointOptions } from 'turnout';
import { joinPool, pgDatabase } from 'turnout/pg';
import { createDatabase, waitFor } from '../support/index.ts';
import type { Database } from '../support/index.ts';
import { migrated } from '../support/migrated.ts';
import { sharedPostgres } from '../support/vitest.ts';

/** One adapter as this suite needs it. */
export interface EndpointDriver<Request> {
  readonly name: string;
  readonly features: EndpointFeatures;
  /** What the request says in `authorization` (a header, metadata), as `authenticate` would read it. */
  authorization(request: Request): string | undefined;
  /** A server with one old handler. Its first use of the database comes after all that the framework does before a handler. */
  start(service: OldService<Request>): Promise<RunningService>;
}

/** What a framework and its protocol can do at all; the suite leaves out the rest. */
export interface EndpointFeatures {
  /** Handlers choose an HTTP status and headers (`status`); otherwise they have codes for errors, and the driver names their like. */
  readonly statuses: boolean;
  /** Handlers can answer bit by bit (`stream`), and callers see it so (`onData`). */
  readonly streaming: boolean;
  /** Handlers can try to answer twice (`twice`). */
  readonly answersTwice: boolean;
  /** Handlers can destroy their answer half way (`break`). */
  readonly breaks: boolean;
  /** Handlers can leave a request to others, of whom there are none (`pass`). */
  readonly passesOn: boolean;
  /** Handlers can set headers (`headers` of `answer`, `refuse` and `fail`), or their like. */
  readonly answerHeaders: boolean;
  /** One gate can stand behind another (`gates: 2`). */
  readonly nests: boolean;
  /** Requests can have a body that nobody parses before the handler (`bytes`); the handler is given what is in it as JSON. */
  readonly rawBodies?: boolean;
}

export interface OldService<Request> {
  /** Undefined: the service as it was before, without the wrapper. */
  readonly endpoint: Endpoint<Request> | undefined;
  /** How often the wrapper stands before the handler, by mistake, if it isn't once. */
  readonly gates?: number;
  /** Given the data of the request, parsed. If it rejects, the framework's handler has to throw the same error. */
  readonly handler: OldHandler;
}

export type OldHandler = (data: unknown) => Promise<Deed>;

/** What the old handler does now. */
export type Deed =
  /** Success, with this as its data. With `headers` where the protocol has them. */
  | { readonly do: 'answer'; readonly body: unknown; readonly headers?: Record<string, string> }
  /** The definitive refusal of the protocol: 422, INVALID_ARGUMENT. */
  | { readonly do: 'refuse'; readonly message: string; readonly headers?: Record<string, string> }
  /** Says itself that it failed: 500, INTERNAL. */
  | { readonly do: 'fail'; readonly message: string; readonly headers?: Record<string, string> }
  | { readonly do: 'status'; readonly status: number; readonly text: string }
  | { readonly do: 'stream'; readonly chunks: AsyncIterable<Buffer> }
  /** Success, and then again, at once and while the gate commits. */
  | { readonly do: 'twice'; readonly body: unknown }
  | { readonly do: 'break' }
  | { readonly do: 'pass' };

export interface RunningService {
  call(request: ServiceCall): Promise<Reply>;
  stop(): Promise<void>;
}

export interface ServiceCall {
  /** Names in lower case; metadata in other protocols than HTTP. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: unknown;
  /** Instead of `body`: as `application/octet-stream`. */
  readonly bytes?: Buffer;
  /** Hangs up; `call` rejects then. */
  readonly signal?: AbortSignal;
  /** Calls something that the service does not have. */
  readonly nowhere?: boolean;
  /** Of services with `streaming`: the bytes, as they come. */
  readonly onData?: (bytes: Buffer) => void;
}

export interface Reply {
  /**
   * The HTTP status, or its like: 200 for success, 422 for what `refuse` does, 500 for `fail` and for a handler that throws, 404 for nowhere;
   * of the gate's own answers what `turnout-error` calls for (see `statusOfError`).
   */
  readonly status: number;
  /** `turnout-outcome` */
  readonly outcome: string | undefined;
  /** `turnout-error` */
  readonly error: string | undefined;
  /** Names in lower case; trailers, metadata in other protocols. */
  readonly headers: Readonly<Record<string, string>>;
  /** The data of a success, the message of an error; undefined, null or empty if there is none. */
  readonly body: unknown;
  /** All that a caller of before could tell from it, in a form that can be compared; without what differs at each call, as `date`. */
  readonly raw: unknown;
}

/** The HTTP status of the gate's own refusals, for drivers of protocols that have none. */
export function statusOfError(code: string | undefined): number {
  const statuses: Record<string, number> = {
    TURNOUT_CALL_HEADERS_MALFORMED: 400,
    TURNOUT_UNAUTHENTICATED: 401,
    TURNOUT_EFFECT_RUNNING: 409,
    TURNOUT_GATE_NESTED: 500,
    TURNOUT_EFFECT_KEY_REUSED: 422,
    TURNOUT_EFFECT_EARLY: 425,
    TURNOUT_CALL_UNKEYED: 428,
  };
  return statuses[code ?? ''] ?? 503;
}

/** The metadata of a call for one event. */
export function metadataOfCall(
  more: Readonly<Record<string, string | undefined>> = {},
  eventId: string = randomUUID(),
): Record<string, string> {
  const headers = {
    authorization: 'Bearer good',
    'idempotency-key': `"email.${eventId}"`,
    'turnout-consumer': 'email',
    'turnout-event-id': eventId,
    'turnout-event-type': 'orders.order-placed',
    'turnout-event-source': 'orders',
    'turnout-event-topic': 'orders',
    'turnout-event-key': 'order-1',
    'turnout-event-time': new Date().toISOString(),
    ...more,
  };
  return Object.fromEntries(
    Object.entries(headers).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}

const template = {
  key: 'endpoint-contract',
  async prepare(url: string) {
    await migrated('consumer').prepare(url);
    const { Client } = await import('pg');
    const client = new Client({ connectionString: url });
    await client.connect();
    await client.query(`
      create table effects (id bigint generated always as identity, name text, step integer,
        transaction bigint default pg_current_xact_id()::text::bigint);
      create function at_commit() returns trigger language plpgsql as $$
      begin
        if new.name like 'slow commit%' then perform pg_sleep(0.15); end if;
        if new.name like 'failing commit%' then raise exception 'the commit fails'; end if;
        return null;
      end $$;
      create constraint trigger at_commit after insert on effects deferrable initially deferred
        for each row execute function at_commit();
    `);
    await client.end();
  },
};

type Options = Partial<
  Pick<EndpointOptions<never, never>, 'order' | 'earlyWaitMs' | 'handlerTimeoutMs' | 'maxAnswerBytes' | 'maxKeptBytes'>
>;

/** What every adapter of `Endpoint` has to do. */
export function endpointContract<Request>(driver: EndpointDriver<Request>): void {
  const { features } = driver;

  describe(`Endpoint: ${driver.name}`, () => {
    let pool: Pool;
    let legacyPool: Pool;
    const running: RunningService[] = [];
    let count = 0;

    let created: Database;
    beforeAll(async () => {
      created = await createDatabase(await sharedPostgres(), { template });
      pool = created.pool({ max: 12 });
      legacyPool = joinPool(pool);
    });
    afterAll(() => created.drop());
    afterEach(async () => {
      await Promise.all(running.splice(0).map((service) => service.stop()));
    });

    /** A name for the effects of one test. */
    const nameOf = (what = 'order'): string => `${what} ${++count}`;

    async function effects(name: string): Promise<number[]> {
      const { rows } = await pool.query<{ step: number }>('select step from effects where name = $1 order by id', [
        name,
      ]);
      return rows.map((row) => row.step);
    }

    async function outcomes(headers: Readonly<Record<string, string>>): Promise<string[]> {
      const { rows } = await pool.query<{ outcome: string }>(
        'select outcome from turnout.inbox where effect_key = $1',
        [headers['idempotency-key']!.slice(1, -1)],
      );
      return rows.map((row) => row.outcome);
    }

    /** Old code: it knows nothing of Turnout, and has a transaction of its own. */
    async function write(data: unknown): Promise<void> {
      const { name, step } = data as Order;
      const client = await legacyPool.connect();
      try {
        await client.query('begin');
        await client.query('insert into effects (name, step) values ($1, $2)', [name, step]);
        await client.query('commit');
      } finally {
        client.release();
      }
    }

    const writeAndAnswer: OldHandler = async (data) => {
      await write(data);
      return { do: 'answer', body: { sent: (data as Order).name }, headers: { 'x-mail': 'queued' } };
    };

    const writeAnd =
      (deed: Deed): OldHandler =>
      async (data) => {
        await write(data);
        return deed;
      };

    /** Starts the service behind an endpoint; `does` can be changed while it runs. */
    async function service(options: Options = {}, how: 'once' | 'twice' = 'once'): Promise<Wrapped> {
      const endpoint = createEndpoint<never, Request>({
        consumer: 'email',
        order: 'none',
        authenticate: (request) => driver.authorization(request) === 'Bearer good',
        earlyWaitMs: 50,
        ...options,
        database: pgDatabase(legacyPool) as never,
      });
      const wrapped = { does: writeAndAnswer, calls: 0 };
      const started = await driver.start({
        endpoint,
        ...(how === 'twice' ? { gates: 2 } : {}),
        handler: (data) => {
          wrapped.calls++;
          return wrapped.does(data);
        },
      });
      running.push(started);
      return Object.assign(wrapped, { call: (request: ServiceCall) => started.call(request) });
    }

    async function bare(does: OldHandler): Promise<RunningService> {
      const started = await driver.start({ endpoint: undefined, handler: does });
      running.push(started);
      return started;
    }

    describe('one effect', () => {
      test('is had once, in one transaction with the gate; a repeat gets the stored answer', async () => {
        const s = await service();
        const [name, headers] = [nameOf(), metadataOfCall()];
        const first = await s.call({ headers, body: { name, step: 1 } });
        expect(first).toMatchObject({ status: 200, outcome: 'applied', error: undefined, body: { sent: name } });
        expect(await effects(name)).toEqual([1]);
        const { rows } = await pool.query(
          `select from turnout.inbox i join effects e on i.xmin::text::bigint = e.transaction % 4294967296 where i.effect_key = $1`,
          [headers['idempotency-key']!.slice(1, -1)],
        );
        expect(rows).toHaveLength(1);
        const again = await s.call({ headers, body: { name, step: 1 } });
        expect(again).toMatchObject({ status: 200, outcome: 'duplicate', error: undefined, body: { sent: name } });
        if (features.statuses) expect(again.headers['x-mail']).toBe('queued');
        expect({ calls: s.calls, effects: await effects(name) }).toEqual({ calls: 1, effects: [1] });
      });

      test('whose commit fails has no outcome, and nothing of it stays', async () => {
        const s = await service();
        const [name, headers] = [nameOf('failing commit'), metadataOfCall()];
        const reply = await s.call({ headers, body: { name, step: 1 } });
        expect(reply).toMatchObject({ status: 503, outcome: undefined });
        expect(await effects(name)).toEqual([]);
        expect(await outcomes(headers)).toEqual([]);
      });

      test('is answered after the commit, and not before', async () => {
        const s = await service();
        const [name, headers] = [nameOf('slow commit'), metadataOfCall()];
        // The commit takes 150 ms: who looks when an answer arrives that was sent before sees nothing.
        const { outcome } = await s.call({ headers, body: { name, step: 1 } });
        expect({ outcome, effects: await effects(name), outcomes: await outcomes(headers) }).toEqual({
          outcome: 'applied',
          effects: [1],
          outcomes: ['applied'],
        });
      });

      test('that runs is not run again: 409', async () => {
        const s = await service();
        const [name, headers] = [nameOf(), metadataOfCall()];
        const gate = latch();
        s.does = async (data) => {
          await gate.opened;
          return await writeAndAnswer(data);
        };
        const first = s.call({ headers, body: { name, step: 1 } });
        await waitFor(() => s.calls === 1);
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
          status: 409,
          outcome: undefined,
          error: 'TURNOUT_EFFECT_RUNNING',
        });
        gate.open();
        expect(await first).toMatchObject({ status: 200, outcome: 'applied' });
        expect(await effects(name)).toEqual([1]);
      });

      test('is known by its body: 422 for another one', async () => {
        const s = await service();
        const [name, headers] = [nameOf(), metadataOfCall()];
        await s.call({ headers, body: { name, step: 1 } });
        expect(await s.call({ headers, body: { name, step: 2 } })).toMatchObject({
          status: 422,
          outcome: undefined,
          error: 'TURNOUT_EFFECT_KEY_REUSED',
        });
        expect(await effects(name)).toEqual([1]);
      });

      test.runIf(features.rawBodies)('is known by the bytes of its body, where nobody parses it', async () => {
        const s = await service();
        const [name, headers] = [nameOf(), metadataOfCall()];
        const call = (pad: string) =>
          s.call({ headers, body: undefined, bytes: Buffer.from(`${JSON.stringify({ name, step: 1 })}${pad}`) });
        // More than comes in one piece.
        const pad = ' '.repeat(300_000);
        expect(await call(pad)).toMatchObject({ status: 200, outcome: 'applied', body: { sent: name } });
        expect(await call(pad)).toMatchObject({ status: 200, outcome: 'duplicate' });
        expect(await call(`${pad} `)).toMatchObject({ status: 422, error: 'TURNOUT_EFFECT_KEY_REUSED' });
        expect({ calls: s.calls, effects: await effects(name) }).toEqual({ calls: 1, effects: [1] });
      });

      test('that is called where nobody is has no outcome', async () => {
        const s = await service();
        const headers = metadataOfCall();
        const reply = await s.call({ headers, body: { name: nameOf(), step: 1 }, nowhere: true });
        expect(reply.outcome).toBeUndefined();
        expect(reply.status).toBeGreaterThanOrEqual(400);
        expect(await outcomes(headers)).toEqual([]);
      });

      test('that the handler refuses is rejected, and nothing of it stays', async () => {
        const s = await service();
        s.does = writeAnd({ do: 'refuse', message: 'sold out' });
        const [name, headers] = [nameOf(), metadataOfCall()];
        const first = await s.call({ headers, body: { name, step: 1 } });
        expect(first).toMatchObject({ status: 422, outcome: 'rejected', error: undefined });
        expect(JSON.stringify(first.body)).toContain('sold out');
        expect(await effects(name)).toEqual([]);
        expect(await outcomes(headers)).toEqual(['rejected']);
        s.does = writeAndAnswer;
        const again = await s.call({ headers, body: { name, step: 1 } });
        expect(again).toMatchObject({ status: 422, outcome: 'duplicate', body: first.body });
        expect(s.calls).toBe(1);
      });

      test.each<[string, OldHandler]>([
        ['says that it failed', writeAnd({ do: 'fail', message: 'out of paper' })],
        [
          'throws',
          async (data) => {
            await write(data);
            throw new Error('out of paper');
          },
        ],
      ])('whose handler %s has no outcome, and nothing of it stays', async (_, does) => {
        const s = await service();
        s.does = does;
        const [name, headers] = [nameOf(), metadataOfCall()];
        const reply = await s.call({ headers, body: { name, step: 1 } });
        expect(reply).toMatchObject({ outcome: undefined });
        expect(reply.status).toBeGreaterThanOrEqual(500);
        expect(await effects(name)).toEqual([]);
        expect(await outcomes(headers)).toEqual([]);
        s.does = writeAndAnswer;
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({ outcome: 'applied' });
        expect(await effects(name)).toEqual([1]);
      });

      test('whose handler never answers is given up: the caller is told, what it goes on to write is refused', async () => {
        const s = await service({ handlerTimeoutMs: 1_000 });
        const gate = latch();
        const late: unknown[] = [];
        s.does = async (data) => {
          await write(data);
          await gate.opened;
          await write(data).catch((error: unknown) => late.push(error));
          late.push('answers');
          return { do: 'answer', body: { late: true } };
        };
        const [name, headers] = [nameOf(), metadataOfCall()];
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
          status: 503,
          outcome: undefined,
          error: 'TURNOUT_HANDLER_FAILED',
        });
        gate.open();
        await waitFor(() => late.length === 2);
        expect(late).toMatchObject([{ code: 'TURNOUT_JOIN_REFUSED' }, 'answers']);
        expect(await effects(name)).toEqual([]);
        s.does = writeAndAnswer;
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({ status: 200, outcome: 'applied' });
        expect(await effects(name)).toEqual([1]);
      });

      test('is kept though the caller has hung up', async () => {
        const s = await service();
        const gate = latch();
        s.does = async (data) => {
          await gate.opened;
          return await writeAndAnswer(data);
        };
        const [name, headers] = [nameOf(), metadataOfCall()];
        const hangUp = new AbortController();
        const gone = s.call({ headers, body: { name, step: 1 }, signal: hangUp.signal });
        gone.catch(() => undefined);
        await waitFor(() => s.calls === 1);
        hangUp.abort();
        await expect(gone).rejects.toThrow();
        gate.open();
        await waitFor(async () => (await outcomes(headers)).length === 1);
        expect(await effects(name)).toEqual([1]);
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
          status: 200,
          outcome: 'duplicate',
          body: { sent: name },
        });
      });

      test('is had once by twenty calls at a time', async () => {
        const s = await service({ earlyWaitMs: 10_000 });
        const [name, headers] = [nameOf(), metadataOfCall()];
        const replies = await Promise.all(
          Array.from({ length: 20 }, () => s.call({ headers, body: { name, step: 1 } })),
        );
        expect(replies.filter(({ outcome }) => outcome === 'applied')).toHaveLength(1);
        expect(replies.filter(({ outcome }) => outcome === 'duplicate')).toHaveLength(19);
        expect(replies.every(({ status }) => status === 200)).toBe(true);
        expect({ calls: s.calls, effects: await effects(name) }).toEqual({ calls: 1, effects: [1] });
      });

      test('and others at a time don’t see each other’s transactions', async () => {
        const s = await service();
        const names = Array.from({ length: 8 }, () => nameOf());
        // Every other one is refused: its neighbours, in hand at the same time, must stay.
        s.does = async (data) => {
          await write(data);
          return (data as Order).step % 2 === 0
            ? { do: 'refuse', message: 'no' }
            : { do: 'answer', body: { sent: (data as Order).name } };
        };
        const replies = await Promise.all(
          names.map((name, step) => s.call({ headers: metadataOfCall(), body: { name, step } })),
        );
        expect(replies.map(({ outcome }) => outcome)).toEqual(
          names.map((_, step) => (step % 2 === 0 ? 'rejected' : 'applied')),
        );
        for (const [step, name] of names.entries()) expect(await effects(name)).toEqual(step % 2 === 0 ? [] : [step]);
      });
    });

    describe('answers', () => {
      const large = (bytes: number): Deed => ({ do: 'answer', body: { sent: 'x'.repeat(bytes) } });

      test('too large to hold back are not sent, and the effect is rolled back', async () => {
        const s = await service({ maxAnswerBytes: 100_000 });
        s.does = writeAnd(large(200_000));
        const [name, headers] = [nameOf(), metadataOfCall()];
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
          status: 503,
          outcome: undefined,
          error: 'TURNOUT_ANSWER_TOO_LARGE',
        });
        expect(await effects(name)).toEqual([]);
        expect(await outcomes(headers)).toEqual([]);
      });

      test('too large to keep are sent, and a repeat has no body', async () => {
        const s = await service({ maxKeptBytes: 1_000 });
        s.does = writeAnd(large(50_000));
        const [name, headers] = [nameOf(), metadataOfCall()];
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
          status: 200,
          outcome: 'applied',
          body: { sent: 'x'.repeat(50_000) },
        });
        const again = await s.call({ headers, body: { name, step: 1 } });
        expect(again).toMatchObject({ status: 200, outcome: 'duplicate' });
        expect([undefined, null, '', '{}', '{"sent":""}']).toContain(
          typeof again.body === 'object' && again.body !== null ? JSON.stringify(again.body) : again.body,
        );
        expect(await effects(name)).toEqual([1]);
      });

      test.runIf(features.streaming)('that come bit by bit are held back until the commit', async () => {
        const s = await service();
        s.does = writeAnd({ do: 'stream', chunks: chunksOf(['{"sent":', '"bit', ' by bit"}']) });
        const [name, headers] = [nameOf('slow commit'), metadataOfCall()];
        let committed: Promise<number[]> | undefined;
        const first = await s.call({
          headers,
          body: { name, step: 1 },
          onData: () => void (committed ??= effects(name)),
        });
        expect(first).toMatchObject({ status: 200, outcome: 'applied', body: { sent: 'bit by bit' } });
        expect(await committed).toEqual([1]);
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
          outcome: 'duplicate',
          body: { sent: 'bit by bit' },
        });
      });

      test.runIf(features.streaming)('without end are given up at the bound, and so is their source', async () => {
        const s = await service({ maxAnswerBytes: 200_000 });
        const source = endless();
        s.does = writeAnd({ do: 'stream', chunks: source.chunks });
        const [name, headers] = [nameOf(), metadataOfCall()];
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
          status: 503,
          outcome: undefined,
          error: 'TURNOUT_ANSWER_TOO_LARGE',
        });
        expect(await effects(name)).toEqual([]);
        await waitFor(() => source.ended(), { what: 'the end of the source' });
      });

      test.runIf(features.streaming)('whose source breaks have no outcome, and nothing stays', async () => {
        const s = await service();
        s.does = writeAnd({
          do: 'stream',
          chunks: (async function* () {
            yield await Promise.resolve(Buffer.from('half of it'));
            throw new Error('the source broke');
          })(),
        });
        const [name, headers] = [nameOf(), metadataOfCall()];
        // The connection breaks as before, or there is an answer that says it failed.
        const reply = await s.call({ headers, body: { name, step: 1 } }).catch(() => undefined);
        expect(reply?.outcome).toBeUndefined();
        if (reply !== undefined) expect(reply.status).toBeGreaterThanOrEqual(500);
        s.does = writeAndAnswer;
        await waitFor(async () => (await s.call({ headers, body: { name, step: 1 } })).outcome === 'applied');
        expect(await effects(name)).toEqual([1]);
      });

      test.runIf(features.answersTwice)('given twice count once: the first', async () => {
        const s = await service();
        s.does = writeAnd({ do: 'twice', body: { sent: 'first' } });
        const [name, headers] = [nameOf('slow commit'), metadataOfCall()];
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
          status: 200,
          outcome: 'applied',
          body: { sent: 'first' },
        });
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({ outcome: 'duplicate' });
        expect(await effects(name)).toEqual([1]);
      });

      test.runIf(features.breaks)('that the handler destroys have no outcome, and nothing stays', async () => {
        const s = await service();
        s.does = writeAnd({ do: 'break' });
        const [name, headers] = [nameOf(), metadataOfCall()];
        const reply = await s.call({ headers, body: { name, step: 1 } }).catch(() => undefined);
        expect(reply?.outcome).toBeUndefined();
        s.does = writeAndAnswer;
        await waitFor(async () => (await s.call({ headers, body: { name, step: 1 } })).outcome === 'applied');
        expect(await effects(name)).toEqual([1]);
      });

      test.runIf(features.passesOn)('of nobody refuse nothing', async () => {
        const s = await service();
        s.does = () => Promise.resolve({ do: 'pass' });
        const [name, headers] = [nameOf(), metadataOfCall()];
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({ status: 404, outcome: undefined });
        expect(await outcomes(headers)).toEqual([]);
        s.does = writeAndAnswer;
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({ status: 200, outcome: 'applied' });
      });

      test.runIf(features.answerHeaders).each([
        ['applied', { 'turnout-outcome': 'rejected', 'turnout-last-number': '7.7' }],
        ['duplicate', { 'turnout-outcome': 'applied', 'turnout-last-number': '7.7' }],
      ])('speak for no gate: a success is %s, whatever is in its headers', async (outcome, own) => {
        const s = await service();
        const [name, headers] = [nameOf(), metadataOfCall()];
        s.does = writeAnd({ do: 'answer', body: { sent: name }, headers: { ...own, 'x-mail': 'queued' } });
        if (outcome === 'duplicate') await s.call({ headers, body: { name, step: 1 } });
        const reply = await s.call({ headers, body: { name, step: 1 } });
        expect(reply).toMatchObject({ status: 200, outcome, body: { sent: name } });
        expect(reply.headers).not.toHaveProperty('turnout-last-number');
        expect(await effects(name)).toEqual([1]);
      });

      test.runIf(features.answerHeaders)(
        'with an error of another gate have no outcome, and nothing stays',
        async () => {
          const s = await service();
          const [name, headers] = [nameOf(), metadataOfCall()];
          const passedOn = { 'turnout-error': 'TURNOUT_EFFECT_EARLY', 'turnout-last-number': '1.1' };
          for (const deed of [
            { do: 'answer', body: { sent: name }, headers: passedOn },
            { do: 'refuse', message: 'running', headers: passedOn },
          ] as const) {
            s.does = writeAnd(deed);
            const reply = await s.call({ headers, body: { name, step: 1 } });
            expect(reply).toMatchObject({ outcome: undefined, error: 'TURNOUT_EFFECT_EARLY' });
            // It counts another key's.
            expect(reply.headers).not.toHaveProperty('turnout-last-number');
            expect(await effects(name)).toEqual([]);
          }
          s.does = writeAndAnswer;
          expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({ outcome: 'applied' });
        },
      );

      test.runIf(features.answerHeaders)('of a failure speak for no gate', async () => {
        const s = await service();
        const [name, headers] = [nameOf(), metadataOfCall()];
        s.does = writeAnd({ do: 'fail', message: 'out of paper', headers: { 'turnout-outcome': 'applied' } });
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({ outcome: undefined });
        expect(await effects(name)).toEqual([]);
      });

      test.runIf(features.nests)('of a gate behind the gate refuse nothing: it is named as the mistake', async () => {
        const s = await service({}, 'twice');
        const [name, headers] = [nameOf(), metadataOfCall()];
        for (const _ of [1, 2]) {
          expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
            status: 500,
            outcome: undefined,
            error: 'TURNOUT_GATE_NESTED',
          });
        }
        expect({ calls: s.calls, outcomes: await outcomes(headers) }).toEqual({ calls: 0, outcomes: [] });
        // Without Turnout's headers both gates are open.
        expect(await s.call({ headers: {}, body: { name, step: 1 } })).toMatchObject({ status: 200 });
        expect(await effects(name)).toEqual([1]);
      });

      test('of nobody are named as such, since a message may look like one', async () => {
        const s = await service();
        const [name, headers] = [nameOf(), metadataOfCall()];
        expect((await s.call({ headers, body: { name, step: 1 } })).headers).not.toHaveProperty('turnout-answer');
        expect((await s.call({ headers, body: { name, step: 1 } })).headers).not.toHaveProperty('turnout-answer');
        // As if it had come as an event: there is an outcome, and no answer.
        await pool.query('update turnout.inbox set answer = null, request_hash = null where effect_key = $1', [
          headers['idempotency-key']!.slice(1, -1),
        ]);
        const reply = await s.call({ headers, body: { name, step: 1 } });
        expect(reply).toMatchObject({ status: 200, outcome: 'duplicate' });
        expect(reply.headers['turnout-answer']).toBe('none');
      });

      test.runIf(features.statuses).each([
        [202, 'applied'],
        [404, 'rejected'],
        [410, 'rejected'],
        [302, undefined],
        [401, undefined],
        [409, undefined],
        [423, undefined],
        [429, undefined],
        [503, undefined],
      ])('with status %i have outcome %s', async (status, outcome) => {
        const s = await service();
        s.does = writeAnd({ do: 'status', status, text: 'as the handler says' });
        const [name, headers] = [nameOf(), metadataOfCall()];
        expect(await s.call({ headers, body: { name, step: 1 } })).toMatchObject({
          status,
          outcome,
          error: undefined,
          body: 'as the handler says',
        });
        expect(await effects(name)).toEqual(outcome === 'applied' ? [1] : []);
      });
    });

    describe('callers', () => {
      test.each<[string, Record<string, string | undefined>, number, string]>([
        ['who are not authenticated', { authorization: 'Bearer bad' }, 401, 'TURNOUT_UNAUTHENTICATED'],
        ['without an effect key', { 'idempotency-key': undefined }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
        ['with a time that is none', { 'turnout-event-time': 'yesterday' }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
        ['with a key number out of place', { 'turnout-key-number': '1.1' }, 400, 'TURNOUT_CALL_HEADERS_MALFORMED'],
      ])('%s are refused', async (_, more, status, error) => {
        const s = await service();
        const name = nameOf();
        expect(await s.call({ headers: metadataOfCall(more), body: { name, step: 1 } })).toMatchObject({
          status,
          outcome: undefined,
          error,
        });
        expect({ calls: s.calls, effects: await effects(name) }).toEqual({ calls: 0, effects: [] });
      });

      test.each<[string, () => Deed]>([
        ['an answer', () => ({ do: 'answer', body: { sent: 'ok' }, headers: { 'x-mail': 'queued' } })],
        ['a refusal', () => ({ do: 'refuse', message: 'sold out' })],
        ['a failure', () => ({ do: 'fail', message: 'out of paper' })],
        ...(features.statuses
          ? ([302, 401, 404, 204] as const).map((status): [string, () => Deed] => [
              String(status),
              () => ({ do: 'status', status, text: '' }),
            ])
          : []),
        ...(features.passesOn ? [['nobody’s 404', () => ({ do: 'pass' })] as [string, () => Deed]] : []),
        ...(features.streaming
          ? [['a stream', () => ({ do: 'stream', chunks: chunksOf(['a', 'b', 'c']) })] as [string, () => Deed]]
          : []),
      ])('without Turnout’s headers get what they always got: %s', async (_, deed) => {
        const s = await service();
        const [name, before] = [nameOf(), nameOf()];
        const does: OldHandler = async (data) => {
          await write(data);
          return deed();
        };
        s.does = does;
        const old = await bare(does);
        // An Idempotency-Key of their own means nothing to the gate.
        const headers = { 'idempotency-key': 'own' };
        const wrapped = await s.call({ headers, body: { name, step: 1 } });
        expect(wrapped.raw).toEqual((await old.call({ headers, body: { name: before, step: 1 } })).raw);
        expect(wrapped).toMatchObject({ outcome: undefined, error: undefined });
        expect([await effects(name), await effects(before)]).toEqual([[1], [1]]);
      });

      test('without Turnout’s headers get what they always got: an error thrown, and nowhere', async () => {
        const s = await service();
        const does: OldHandler = () => Promise.reject(new Error('out of paper'));
        s.does = does;
        const old = await bare(does);
        const body = { name: nameOf(), step: 1 };
        expect((await s.call({ headers: {}, body })).raw).toEqual((await old.call({ headers: {}, body })).raw);
        expect((await s.call({ headers: {}, body, nowhere: true })).raw).toEqual(
          (await old.call({ headers: {}, body, nowhere: true })).raw,
        );
      });

      test.runIf(features.streaming)('without Turnout’s headers get a stream as it comes', async () => {
        const s = await service();
        const seen = latch();
        s.does = () =>
          Promise.resolve({
            do: 'stream',
            chunks: (async function* () {
              yield Buffer.from('first');
              await seen.opened;
              yield Buffer.from(' second');
            })(),
          });
        // Held back, the first bit would wait for the second, and the second for the first.
        const reply = await s.call({ headers: {}, body: { name: nameOf(), step: 1 }, onData: () => seen.open() });
        expect(reply.body).toBe('first second');
      });
    });

    describe('the order of a key', () => {
      test('a call that is ahead is told so, with the last number: 425', async () => {
        const s = await service({ order: 'key' });
        const name = nameOf();
        const call = (number: number) =>
          s.call({
            headers: metadataOfCall({
              'turnout-event-key': name.replace(' ', '-'),
              'turnout-key-number': `1.${number}`,
            }),
            body: { name, step: number },
          });
        expect(await call(1)).toMatchObject({ outcome: 'applied' });
        const early = await call(3);
        expect(early).toMatchObject({ status: 425, outcome: undefined, error: 'TURNOUT_EFFECT_EARLY' });
        expect(early.headers['turnout-last-number']).toBe('1.1');
        expect(await effects(name)).toEqual([1]);
      });

      test('a call that is a little ahead waits for the one before it', async () => {
        const s = await service({ order: 'key', earlyWaitMs: 5_000 });
        const name = nameOf();
        const call = (number: number) =>
          s.call({
            headers: metadataOfCall({
              'turnout-event-key': name.replace(' ', '-'),
              'turnout-key-number': `1.${number}`,
            }),
            body: { name, step: number },
          });
        // Whichever comes first, the effects have the order of the numbers.
        const [two, one] = await Promise.all([call(2), call(1)]);
        expect([one, two]).toMatchObject([{ outcome: 'applied' }, { outcome: 'applied' }]);
        expect(await effects(name)).toEqual([1, 2]);
      });
    });
  });
}

interface Order {
  readonly name: string;
  readonly step: number;
}

interface Wrapped {
  does: OldHandler;
  readonly calls: number;
  readonly call: RunningService['call'];
}

function latch(): { opened: Promise<void>; open: () => void } {
  let open!: () => void;
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

async function* chunksOf(texts: readonly string[]): AsyncGenerator<Buffer> {
  for (const text of texts) {
    await new Promise((resolve) => setImmediate(resolve));
    yield Buffer.from(text);
  }
}

/** Bytes that never end; `ended` says that nobody asks for more. */
function endless(): { chunks: AsyncGenerator<Buffer>; ended: () => boolean } {
  let ended = false;
  const chunks = (async function* () {
    try {
      for (;;) {
        await new Promise((resolve) => setImmediate(resolve));
        yield Buffer.alloc(16_384, 'x');
      }
    } finally {
      ended = true;
    }
  })();
  return { chunks, ended: () => ended };
}
