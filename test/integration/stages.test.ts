// Every row of the table of stages: what a change needs, what refuses it, and that `done` is proven.
import { randomUUID } from 'node:crypto';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { PoolClient } from 'pg';
import {
  isTurnoutError,
  latestCheck,
  mayBeRepeated,
  recordCheck,
  setStage,
  stepBack,
  switchoverHistory,
  switchoverStatus,
} from 'turnout';
import type { SwitchoverDefinition } from 'turnout';
import { codeOfSqlState } from '../../src/errors/index.ts';
import { registerSwitchover, recordSince, stageChange, stages } from '../../src/switchover/index.ts';
import type { Stage, StageRow, StageRequest, StageFacts } from '../../src/switchover/index.ts';
import { waitFor } from '../support/wait-for.ts';
import { emailSwitchover, OrderPlaced, producer } from './fixtures/switchover-world.ts';

const answered = () => Promise.resolve({ status: 200, headers: { 'turnout-outcome': 'applied' }, body: {} });
const definitions = {
  none: emailSwitchover(() => '', { order: 'none', call: answered }),
  key: emailSwitchover(() => '', { order: 'key', call: answered }),
};
type Producer = Awaited<ReturnType<typeof producer>>;

/** A producer with one registered switchover. */
async function registered(order: 'key' | 'none' = 'none', endpoint: 'wrapped' | 'bridged' = 'wrapped') {
  const from = await producer();
  const email: SwitchoverDefinition = { ...definitions[order], endpoint };
  await from.register(email);
  const change = (stage: string, options: { reason?: string; percent?: number; force?: boolean } = {}) =>
    setStage(from.database, 'orders', email.name, stage, { reason: 'test', ...options });
  return {
    from,
    email,
    change,
    /** The code that refuses a change, or its epoch. */
    tried: (stage: string, options: { reason?: string; percent?: number; force?: boolean } = {}) =>
      change(stage, options).catch((error: unknown) => (isTurnoutError(error) ? error.code : error)),
    ready: (stage: Stage) =>
      recordCheck(from.database, 'orders', email.name, { stage, verdict: 'ready', findings: [] }),
    async place(step: number, client?: PoolClient) {
      const { rows } = await (client ?? from.pool).query<{ id: string }>(
        `select turnout.publish('orders', $1, 1, 'a', json_build_object('orderId', 'a', 'step', $2::int), switchovers => array['order-email']) as id`,
        [OrderPlaced.name, step],
      );
      return rows[0]!.id;
    },
    async route(id: string) {
      const { rows } = await from.pool.query<{ routes: string }>('select routes from turnout.outbox where id = $1', [
        id,
      ]);
      return rows[0]!.routes;
    },
    async open() {
      return (await from.pool.query('select from turnout.rpc_open')).rowCount;
    },
  };
}

async function client(from: Producer): Promise<{ client: PoolClient; pid: number; release: () => void }> {
  const opened = await from.pool.connect();
  opened.on('error', () => undefined);
  let released = false;
  const release = (): void => {
    if (!released) opened.release(true);
    released = true;
  };
  // A test that failed must not leave it open.
  onTestFinished(release);
  const { rows } = await opened.query<{ pid: number }>('select pg_backend_pid() as pid');
  return { client: opened, pid: rows[0]!.pid, release };
}

const waitsForLock = (from: Producer, pid: number) =>
  waitFor(
    async () => {
      const { rows } = await from.pool.query<{ waits: boolean }>(
        `select wait_event_type = 'Lock' as waits from pg_stat_activity where pid = $1`,
        [pid],
      );
      return rows[0]!.waits;
    },
    { what: `the lock that ${pid} waits for` },
  );

/** Whether somebody waits for a lock of that backend. */
async function blocks(from: Producer, pid: number): Promise<boolean> {
  const { rowCount } = await from.pool.query(
    `select from pg_stat_activity where wait_event_type = 'Lock' and $1 = any (pg_blocking_pids(pid))`,
    [pid],
  );
  return rowCount === 1;
}

describe('the decision', () => {
  const verdicts = [undefined, 'ready', 'not-ready', 'inconclusive'] as const;
  const cases = function* (): Generator<[StageRow, StageRequest, StageFacts]> {
    for (const stage of stages)
      for (const [endpoint, order] of [
        ['wrapped', 'none'],
        ['wrapped', 'key'],
        ['bridged', 'none'],
        ['bridged', 'key'],
      ] as const)
        for (const sinceRecorded of [true, false])
          for (const to of [...stages, 'sideways'])
            for (const percent of to === 'ramp' ? [0, 0.004, 5, 20, 40, 100, 100.01, -1] : [0, 5])
              for (const reason of ['why', ' '])
                for (const undeclaredEvents of [0, 3])
                  for (const verdict of verdicts)
                    for (const owedCalls of [0, 2])
                      yield [
                        { stage, percent: stage === 'ramp' ? 20 : 0, endpoint, order, sinceRecorded },
                        { stage: to, percent, reason },
                        { undeclaredEvents, verdict, owedCalls },
                      ];
  };

  test('is the same in SQL and in TypeScript, for all stages and facts', async () => {
    const { pool } = await producer();
    const all = [...cases()];
    const asked = all.map(([current, request, facts], index) => ({
      index,
      ...current,
      to: request.stage,
      share: request.percent,
      reason: request.reason,
      ...facts,
      verdict: facts.verdict ?? null,
    }));
    const { rows } = await pool.query<{ index: number; problems: { code: string; forceable: boolean }[] }>(
      `select c.index, coalesce(p.problems, '[]') as problems
         from json_to_recordset($1) as c (index integer, stage text, percent numeric, endpoint text, "order" text, "sinceRecorded" boolean,
                                          "to" text, share numeric, reason text, "undeclaredEvents" bigint, verdict text, "owedCalls" bigint)
         left join lateral (
           select json_agg(json_build_object('code', p.code, 'forceable', p.forceable) order by p.place) as problems
             from turnout.stage_problems(c.stage, c.percent, c.endpoint, c."order", c."sinceRecorded", c."to", round(c.share, 2), c.reason,
                                         c."undeclaredEvents", c.verdict, c."owedCalls") p) p on true
        order by c.index`,
      [JSON.stringify(asked)],
    );
    expect(rows).toHaveLength(all.length);
    let compared = 0;
    const different: unknown[] = [];
    for (const { index, problems } of rows) {
      const [current, request, facts] = all[index]!;
      const decision = stageChange(current, request, facts);
      // Decided before anything is asked of the facts.
      if (decision.kind === 'unchanged') continue;
      compared++;
      const here = decision.kind === 'refused' ? decision.problems : [];
      const there = problems.map(({ code, forceable }) => ({ code: codeOfSqlState(code), forceable }));
      if (JSON.stringify(here) !== JSON.stringify(there)) different.push({ current, request, facts, here, there });
    }
    expect(different).toEqual([]);
    expect(compared).toBeGreaterThan(5_000);
  });

  test('is what set_stage does, with everything that stands against it told at once', async () => {
    const w = await registered();
    const { pool } = w.from;
    // A sample of them, spread over all; one transaction that is never committed.
    const all = [...cases()].flatMap((each, index) => (index % 61 === 0 ? [each] : []));
    const { client: tx, release } = await client(w.from);
    try {
      await tx.query('begin');
      for (const [index, [current, request, facts]] of all.entries()) {
        const force = index % 3 === 0;
        await tx.query('savepoint one');
        await tx.query(
          `update turnout.switchover set stage = $1, percent = $2, endpoint = $3, ordering = $4, since = $5, epoch = 7, created_xid = '1'`,
          [current.stage, current.percent, current.endpoint, current.order, current.sinceRecorded ? '{}' : null],
        );
        if (facts.verdict !== undefined)
          await tx.query(
            `insert into turnout.switchover_check (source, switchover, epoch, for_stage, verdict) values ('orders', 'order-email', 7, $1, $2)`,
            [isStageName(request.stage) ? request.stage : 'rpc', facts.verdict],
          );
        for (let n = 0; n < facts.undeclaredEvents; n++)
          await tx.query(`select turnout.publish('orders', $1, 1, 'a', '{}')`, [OrderPlaced.name]);
        for (let n = 0; n < facts.owedCalls; n++)
          await tx.query(
            `insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, epoch)
             values ($1, 'orders', 'order-email', 0, 'email', gen_random_uuid(), 1, '1', 'orders', 1)`,
            [randomUUID()],
          );
        const decision = stageChange(current, { ...request, force }, facts);
        const codes = decision.kind === 'refused' ? decision.problems.map(({ code }) => code) : [];
        // Calls alone are waited for, for seconds; that is looked at below.
        if (codes.length !== 1 || codes[0] !== 'TURNOUT_CALLS_OWED') {
          await tx.query('savepoint two');
          const result = await tx
            .query<{ epoch: string }>('select turnout.set_stage($1, $2, $3, $4, $5, $6)::text as epoch', [
              'orders',
              'order-email',
              request.stage,
              request.reason,
              request.percent,
              force,
            ])
            .then(
              ({ rows }) => rows[0]!.epoch,
              (error: { code: string; detail: string }) =>
                (JSON.parse(error.detail) as { problems: { sqlState: string }[] }).problems.map((each) =>
                  codeOfSqlState(each.sqlState),
                ),
            );
          const expected = { unchanged: '7', changed: '8', refused: codes }[decision.kind];
          expect(result, JSON.stringify([current, request, facts, force])).toEqual(expected);
          if (decision.kind === 'changed') {
            const { rows } = await tx.query('select stage, percent::float8 as percent from turnout.switchover');
            expect(rows).toEqual([{ stage: decision.stage, percent: decision.percent }]);
          }
        }
        await tx.query('rollback to savepoint one');
      }
      await tx.query('rollback');
    } finally {
      release();
    }
    expect(all.length).toBeGreaterThan(150);
    expect((await pool.query('select stage from turnout.switchover')).rows).toEqual([{ stage: 'rpc' }]);
  });
});

function isStageName(text: string): boolean {
  return (stages as readonly string[]).includes(text);
}

describe('a promotion', () => {
  test('goes by the newest check for that stage, of this epoch and at most ten minutes old', async () => {
    const w = await registered();
    expect(await w.tried('shadow')).toBe('TURNOUT_CHECKS_MISSING');
    await w.ready('ramp');
    expect(await w.tried('shadow')).toBe('TURNOUT_CHECKS_MISSING');
    await w.ready('shadow');
    await recordCheck(w.from.database, 'orders', w.email.name, {
      stage: 'shadow',
      verdict: 'inconclusive',
      findings: [
        { check: 'lag', verdict: 'inconclusive', value: null, limit: 100, why: 'nobody knows', remedy: 'look' },
      ],
    });
    await expect(w.change('shadow')).rejects.toMatchObject({
      code: 'TURNOUT_CHECKS_NOT_READY',
      details: { verdict: 'inconclusive', findings: [{ check: 'lag', why: 'nobody knows' }] },
    });
    await w.ready('shadow');
    expect(await w.tried('shadow')).toBe(2);
    // That for ramp is of the epoch before.
    expect(await latestCheck(w.from.database, 'orders', w.email.name, 'ramp')).toMatchObject({ current: false });
    expect(await w.tried('ramp', { percent: 5 })).toBe('TURNOUT_CHECKS_MISSING');
    await w.ready('ramp');
    await w.from.pool.query(`update turnout.switchover_check set at = at - interval '11 minutes'`);
    expect(await w.tried('ramp', { percent: 5 })).toBe('TURNOUT_CHECKS_MISSING');
    await w.ready('ramp');
    expect(await w.tried('ramp', { percent: 5 })).toBe(3);
    expect(await switchoverStatus(w.from.database, 'orders')).toMatchObject([{ stage: 'ramp', percent: 5, epoch: 3 }]);
    await expect(
      recordCheck(w.from.database, 'orders', 'nobody', { stage: 'event', verdict: 'ready', findings: [] }),
    ).rejects.toMatchObject({ code: 'TURNOUT_SWITCHOVER_UNKNOWN' });
  });

  test('that is forced needs a reason, and the history says what was overridden', async () => {
    const w = await registered();
    await w.from.pool.query(`select turnout.publish('orders', $1, 1, 'a', '{}')`, [OrderPlaced.name]);
    await w.from.pool.query('update turnout.switchover set since = null');
    await expect(w.change('event', { reason: ' ', force: false })).rejects.toMatchObject({
      code: 'TURNOUT_REASON_MISSING',
      message: expect.stringContaining('has not recorded where it started'),
      details: {
        problems: [
          { code: 'TURNOUT_REASON_MISSING' },
          { code: 'TURNOUT_SINCE_MISSING', details: { consumer: 'email' } },
          { code: 'TURNOUT_UNDECLARED_PUBLISHERS', details: { events: 1 } },
          { code: 'TURNOUT_CHECKS_MISSING' },
        ],
      },
    });
    expect(await w.tried('event', { force: true })).toBe('TURNOUT_SINCE_MISSING');
    await recordSince(w.from.database, 'orders', w.email.name, { orders: [0n, 0n, 0n] });
    expect(await w.tried('event', { force: true, reason: 'they know' })).toBe(2);
    // Nothing stood against the way back, whatever was asked.
    expect(await w.tried('rpc', { force: true })).toBe(3);
    expect((await switchoverHistory(w.from.database, 'orders', w.email.name)).slice(1)).toMatchObject([
      { to: 'event', forced: true, reason: 'they know', detail: { forced: ['TU016', 'TU015'] } },
      { to: 'rpc', forced: false, detail: undefined },
    ]);
  });

  test('within ramp is a change of its own when the percentage rises, and only adds keys', async () => {
    const w = await registered();
    const routed = async () => {
      const { rows } = await w.from.pool.query<{ key: string }>(
        `select k.key from turnout.switchover s cross join lateral (select 'order-' || n as key from generate_series(1, 400) n) k
          where turnout.route_for(s.stage, s.percent, s.salt, k.key) = 'event'`,
      );
      return new Set(rows.map(({ key }) => key));
    };
    await w.change('ramp', { percent: 10, force: true });
    const before = await routed();
    expect(await w.tried('ramp', { percent: 10 })).toBe(2);
    expect(await w.tried('ramp', { percent: 30 })).toBe('TURNOUT_CHECKS_MISSING');
    await w.ready('ramp');
    expect(await w.tried('ramp', { percent: 30 })).toBe(3);
    const after = await routed();
    expect(before.size).toBeGreaterThan(0);
    expect(after.size).toBeGreaterThan(before.size);
    expect([...before].filter((key) => !after.has(key))).toEqual([]);
    // The way back needs nothing.
    expect(await w.tried('ramp', { percent: 10 })).toBe(4);
    expect(await routed()).toEqual(before);
    expect((await switchoverHistory(w.from.database, 'orders', w.email.name)).map(({ percent }) => percent)).toEqual([
      0, 10, 30, 10,
    ]);
  });
});

describe('shadow', () => {
  test('is stamped: in the routes, in what publish gives and in what is owed', async () => {
    const w = await registered('key');
    await w.change('shadow', { force: true });
    const turnout = w.from.turnout([w.email]);
    const published = await turnout.transaction((tx) => turnout.publish(tx, OrderPlaced, { orderId: 'a', step: 1 }));
    expect(published.stamps).toMatchObject([{ route: 'rpc', shadow: true, turn: { number: 1 } }]);
    expect(await w.route(published.id)).toBe('email=rpc;epoch=2;shadow=1;generation=1;number=1');
    await turnout.close();
    await w.place(2);
    expect((await w.from.pool.query('select shadow, number::int as number from turnout.rpc_delivery')).rows).toEqual([
      { shadow: true, number: 2 },
    ]);
    await w.change('rpc');
    expect(await w.route(await w.place(3))).toBe('email=rpc;epoch=3;generation=1;number=3');
  });
});

describe('an automatic change', () => {
  test('goes back, never on, and is told apart in the history with its grounds', async () => {
    const w = await registered();
    const back = (stage: Stage, percent = 0) =>
      stepBack(w.from.database, 'orders', w.email.name, stage, {
        reason: 'parked events',
        detail: { findings: ['parked'] },
        percent,
      }).catch((error: unknown) => (isTurnoutError(error) ? error.code : error));
    await w.change('ramp', { percent: 10, force: true });
    expect(await back('event')).toBe('TURNOUT_STAGE_ORDER');
    expect(await back('ramp', 20)).toBe('TURNOUT_STAGE_ORDER');
    expect(await back('ramp', 5)).toBe(3);
    expect(await back('rpc')).toBe(4);
    expect(await back('rpc')).toBe(4);
    expect((await switchoverHistory(w.from.database, 'orders', w.email.name)).slice(2)).toMatchObject([
      { to: 'ramp', percent: 5, automatic: true, forced: false, detail: { findings: ['parked'] } },
      { to: 'rpc', automatic: true, reason: 'parked events' },
    ]);
  });
});

describe('a bridged endpoint', () => {
  test('has no shadow and no ramp; unordered, it flips at once and keeps its calls', async () => {
    const w = await registered('none', 'bridged');
    expect(await w.tried('shadow', { force: true })).toBe('TURNOUT_STAGE_UNAVAILABLE');
    expect(await w.tried('ramp', { force: true, percent: 5 })).toBe('TURNOUT_STAGE_UNAVAILABLE');
    await w.place(1);
    expect(await w.tried('event', { force: true })).toBe(2);
    expect(await w.open()).toBe(16);
    expect(await w.tried('rpc')).toBe(3);
  });

  test('that is ordered drains its calls before events, and its events before calls', async () => {
    const w = await registered('key', 'bridged');
    await w.place(1);
    await expect(w.change('event', { force: true })).rejects.toMatchObject({
      code: 'TURNOUT_CALLS_OWED',
      retryable: true,
      details: { owed: 1 },
    });
    // Answered while the change waits, with publishers held off meanwhile.
    const { client: tx, pid, release } = await client(w.from);
    await tx.query('begin');
    await w.place(2, tx);
    const changing = w.change('event', { force: true });
    await waitFor(async () => await blocks(w.from, pid), { what: 'the change to wait for the open publisher' });
    await tx.query('commit');
    await w.from.pool.query('delete from turnout.rpc_delivery');
    expect(await changing).toBe(2);
    release();
    expect(await w.open()).toBe(0);
    expect(await w.route(await w.place(3))).toContain('email=event;epoch=2');
    expect(await w.tried('rpc')).toBe('TURNOUT_CHECKS_MISSING');
    await w.ready('rpc');
    expect(await w.tried('rpc')).toBe(3);
    expect(await w.open()).toBe(16);
    expect(await w.route(await w.place(4))).toContain('email=rpc;epoch=3');
  });

  test('that is ordered fails a publisher that has read rpc while it flips: it runs again, and goes by event', async () => {
    const w = await registered('key', 'bridged');
    const { client: flipping, pid, release: releaseFlip } = await client(w.from);
    const { client: tx, release } = await client(w.from);
    await flipping.query('begin');
    await flipping.query(`select turnout.set_stage('orders', 'order-email', 'event', 'test', 0, true)`);
    await tx.query('begin');
    const stamping = w.place(1, tx);
    stamping.catch(() => undefined);
    await waitFor(async () => await blocks(w.from, pid), { what: 'the publisher to wait for the flip' });
    await flipping.query('commit');
    releaseFlip();
    const error: unknown = await stamping.catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: '23503', constraint: 'rpc_delivery_open' });
    expect(mayBeRepeated(error)).toBe(true);
    await tx.query('rollback');
    expect(await w.route(await w.place(1, tx))).toBe('email=event;epoch=2;generation=1;number=1');
    release();
  });

  test('is recorded with the switchover, and changes in stage rpc only', async () => {
    const w = await registered();
    expect(await switchoverStatus(w.from.database, 'orders')).toMatchObject([{ endpoint: 'wrapped' }]);
    await registerSwitchover(w.from.database, 'orders', { ...w.email, endpoint: 'bridged' }, 'nobody can change it');
    expect(await switchoverStatus(w.from.database, 'orders')).toMatchObject([{ endpoint: 'bridged' }]);
    await w.change('event', { force: true });
    await expect(
      registerSwitchover(w.from.database, 'orders', { ...w.email, endpoint: 'wrapped' }, 'or so'),
    ).rejects.toMatchObject({ code: 'TURNOUT_SWITCHOVER_INVALID' });
  });
});

describe('done', () => {
  async function atEvent(order: 'key' | 'none' = 'key') {
    const w = await registered(order);
    await w.change('event', { force: true });
    return w;
  }

  test('needs a check, is refused while a call is owed, and is final', async () => {
    const w = await atEvent();
    expect(await w.tried('done')).toBe('TURNOUT_CHECKS_MISSING');
    await w.ready('done');
    await w.change('rpc');
    await w.place(1);
    await w.change('event', { force: true });
    await w.ready('done');
    await expect(w.change('done', { force: true })).rejects.toMatchObject({
      code: 'TURNOUT_CALLS_OWED',
      details: { owed: 1 },
    });
    expect(await w.open()).toBe(16);
    await w.from.pool.query('delete from turnout.rpc_delivery');
    const epoch = await w.change('done');
    expect(await w.open()).toBe(0);
    expect([await w.tried('done'), await w.tried('rpc', { force: true })]).toEqual([epoch, 'TURNOUT_STAGE_FINAL']);
    // Stamps go on for ever: dropping them loses or doubles.
    expect(await w.route(await w.place(2))).toBe(`email=event;epoch=${epoch};generation=1;number=2`);
  });

  test.each(['key', 'none'] as const)(
    'code that declares the switchover no more is stamped all the same: it was to be deleted (order %s)',
    async (order) => {
      const w = await atEvent(order);
      const publish = async (data: string): Promise<string | null> => {
        const { rows } = await w.from.pool.query<{ id: string }>(
          `select turnout.publish('orders', $1, 1, 'a', $2) as id`,
          [OrderPlaced.name, data],
        );
        return w.route(rows[0]!.id);
      };
      // Before, it is code of an older version, which makes the call by itself.
      expect(await publish('{"step": 1}')).toBeNull();
      const epoch = await w.change('done', { force: true });
      const turn = order === 'key' ? ';generation=1;number=1' : '';
      expect(await publish('{"step":  2}')).toBe(`email=event;epoch=${epoch}${turn}`);
      // As it was given, to the blank.
      const { rows } = await w.from.pool.query(
        `select o.payload::text as data from turnout.outbox o order by o.seq desc limit 1`,
      );
      expect(rows).toEqual([{ data: '{"step":  2}' }]);
    },
  );

  test('waits for a transaction that has stamped a call, and refuses for what it owes', async () => {
    const w = await registered('key');
    const { client: tx, pid, release } = await client(w.from);
    await tx.query('begin');
    await w.place(1, tx);
    await w.change('event', { force: true });
    const changing = w.tried('done', { force: true });
    await waitFor(async () => await blocks(w.from, pid), { what: 'done to wait for the open stamper' });
    await tx.query('commit');
    release();
    expect(await changing).toBe('TURNOUT_CALLS_OWED');
    expect(await switchoverStatus(w.from.database, 'orders')).toMatchObject([{ stage: 'event', owedCalls: 1 }]);
  });

  test('gives up on a transaction that stays open, and holds nobody up after', async () => {
    const w = await registered('key');
    const { client: tx, release } = await client(w.from);
    await tx.query('begin');
    await w.place(1, tx);
    await w.change('event', { force: true });
    expect(await w.tried('done', { force: true })).toBe('TURNOUT_CALLS_OPEN');
    await tx.query('rollback');
    release();
    expect(await w.tried('done', { force: true })).toBe(3);
  });

  test.each(['read committed', 'repeatable read', 'serializable'])(
    'leaves no way to stamp a call to a publisher that has read the stage before (%s)',
    async (isolation) => {
      const w = await registered('key');
      const { client: tx, pid, release } = await client(w.from);
      const { client: other, release: releaseOther } = await client(w.from);
      await other.query('begin');
      // Read committed: it waits for the key, and so has a snapshot of before; the others take theirs at once.
      if (isolation === 'read committed') await other.query(`select turnout.lock_keys('orders', '{a}')`);
      await tx.query(`begin isolation level ${isolation}`);
      await tx.query('select count(*) from turnout.switchover');
      let stamping = isolation === 'read committed' ? w.place(1, tx) : undefined;
      stamping?.catch(() => undefined);
      if (stamping !== undefined) await waitsForLock(w.from, pid);
      await w.change('event', { force: true });
      await w.change('done', { force: true });
      await other.query('rollback');
      releaseOther();
      stamping ??= w.place(1, tx);
      const outcome = await stamping.then(
        () => 'published',
        (error: unknown) => error,
      );
      if (isolation === 'read committed') {
        // The stage is read after the locks were taken.
        expect(outcome).toBe('published');
        await tx.query('commit');
      } else {
        expect((outcome as { code: string }).code).toMatch(/^(23503|40001)$/);
        expect(mayBeRepeated(outcome)).toBe(true);
        await tx.query('rollback');
      }
      release();
      expect((await w.from.pool.query('select from turnout.rpc_delivery')).rowCount).toBe(0);
      expect((await w.from.pool.query(`select from turnout.outbox where routes like '%=rpc%'`)).rowCount).toBe(0);
    },
  );

  test('makes turnout.transaction() run again a transaction whose snapshot is older', async () => {
    const w = await registered('key');
    const turnout = w.from.turnout([w.email]);
    let runs = 0;
    const published = await turnout.transaction(async (tx) => {
      runs++;
      await tx.query('set transaction isolation level repeatable read');
      await tx.query('select count(*) from turnout.switchover');
      if (runs === 1) {
        await w.change('event', { force: true });
        await w.change('done', { force: true });
      }
      return turnout.publish(tx, OrderPlaced, { orderId: 'a', step: 1 });
    });
    expect(runs).toBe(2);
    expect(published.stamps).toMatchObject([{ route: 'event', epoch: 3, turn: { number: 1 } }]);
    await turnout.close();
  });
});
