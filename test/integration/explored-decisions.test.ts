// What the explorer runs instead of SQL, held equal to the SQL: stamping, whose call the sweeper may make, whose held event is next.
import { randomUUID } from 'node:crypto';
import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import type { PoolClient } from 'pg';
import { advance } from '../../src/consumer/position-store.ts';
import type { Queryable } from '../../src/database/index.ts';
import { nextHeld } from '../../src/inbox/index.ts';
import type { Gate } from '../../src/inbox/index.ts';
import { isInTheWayOf, nextOf } from '../../src/inbox/next-held.ts';
import type { HeldOfKey } from '../../src/inbox/next-held.ts';
import { silentLogger } from '../../src/lifecycle/index.ts';
import { stages } from '../../src/switchover/index.ts';
import { adopt, claimable } from '../../src/switchover/calls/due.ts';
import type { OwedRow } from '../../src/switchover/calls/due.ts';
import { stampEvents } from '../../src/switchover/stages/stamping.ts';
import type { EventToStamp, KeyNumber, StampingRow } from '../../src/switchover/stages/stamping.ts';
import { adopt as adoptInSql, claimDue } from '../../src/switchover/calls/sweeper.ts';
import { migrated } from '../support/migrated.ts';
import { database } from '../support/vitest.ts';

const pool = (await database({ template: migrated('producer', 'consumer') })).pool();
const runs = { numRuns: 300 };

beforeAll(async () => {
  await pool.query(`insert into turnout.source (name) values ('orders');
    insert into turnout.topic (name, partitions) values ('orders', 1);
    insert into turnout.event_type (name, version, topic, aggregate, ordering) values
      ('orders.keyed', 1, 'orders', 'orders', 'key'), ('orders.plain', 1, 'orders', 'orders', 'none')`);
});

/** Runs one case in a transaction that is rolled back. */
async function tried<Result>(work: (tx: Queryable) => Promise<Result>): Promise<Result> {
  const client: PoolClient = await pool.connect();
  try {
    await client.query('begin');
    return await work(client);
  } finally {
    await client.query('rollback');
    client.release();
  }
}

const keys = ['a', 'b'] as const;
const small = fc.integer({ min: 1, max: 3 });

async function insertSwitchovers(tx: Queryable, rows: readonly StampingRow[]): Promise<void> {
  await tx.query(
    `insert into turnout.switchover (source, name, consumer, topic, event_types, ordering, stage, percent, salt, epoch, generation)
     select 'orders', s.name, s.consumer, 'orders', '{orders.keyed,orders.plain}', s.order, s.stage, s.percent, s.salt, s.epoch, s.generation
       from jsonb_to_recordset($1::jsonb) as s (name text, consumer text, "order" text, stage text, percent numeric, salt text, epoch bigint, generation integer)`,
    [JSON.stringify(rows)],
  );
  await tx.query(
    `insert into turnout.rpc_open (source, switchover, stripe)
     select s.source, s.name, n from turnout.switchover s, generate_series(0, 15) n`,
  );
}

describe('stamping', () => {
  const row = fc.record({
    order: fc.constantFrom('key', 'none'),
    stage: fc.constantFrom(...stages),
    percent: fc.integer({ min: 0, max: 10_000 }).map((hundredths) => hundredths / 100),
    salt: fc.string({ maxLength: 8, unit: 'grapheme-ascii' }),
    epoch: fc.integer({ min: 1, max: 1_000 }),
    generation: small,
  });
  const world = fc
    .array(row, { minLength: 1, maxLength: 3 })
    .map((rows) => rows.map((each, at): StampingRow => ({ ...each, name: `s${at}`, consumer: `c${at}` })))
    .chain((rows) => {
      const names = rows.map(({ name }) => name);
      // An unordered switchover takes events with a key and without; an ordered one only those with.
      const event = fc
        .record({ key: fc.constantFrom(...keys, null), switchovers: fc.subarray(names) })
        .filter(({ key, switchovers }) =>
          rows.every(
            ({ name, order, stage }) =>
              order === 'none' || key !== null || (stage !== 'done' && !switchovers.includes(name)),
          ),
        )
        .map((given): EventToStamp => ({ ...given, id: randomUUID(), topic: 'orders' }));
      const counted = fc
        .array(
          fc.record({
            consumer: fc.constantFrom(...rows.map(({ consumer }) => consumer)),
            topic: fc.constant('orders'),
            key: fc.constantFrom(...keys),
            generation: small,
            number: fc.integer({ min: 1, max: 50 }),
          }),
          { maxLength: 4 },
        )
        .map((numbers) => [...new Map(numbers.map((each) => [`${each.consumer} ${each.key}`, each])).values()]);
      return fc.record({
        rows: fc.constant(rows),
        numbers: counted,
        events: fc.array(event, { minLength: 1, maxLength: 5 }),
      });
    });

  test('is the same in SQL', async () => {
    await fc.assert(
      fc.asyncProperty(world, async ({ rows, numbers, events }) => {
        const expected = stampEvents({ rows, numbers, events });
        const actual = await tried(async (tx) => {
          await insertSwitchovers(tx, rows);
          await tx.query(
            `insert into turnout.key_number (source, consumer, topic, key, generation, number)
             select 'orders', n.consumer, n.topic, n.key, n.generation, n.number
               from jsonb_to_recordset($1::jsonb) as n (consumer text, topic text, key text, generation integer, number bigint)`,
            [JSON.stringify(numbers)],
          );
          return publish(tx, events);
        });
        expect(actual.stamps).toEqual(
          expected.stamps.map((stamps) =>
            stamps.map(({ turn, shadow, ...rest }) => ({ ...rest, ...turn, ...(shadow ? { shadow } : {}) })),
          ),
        );
        expect(actual.owed).toEqual(expected.owed.toSorted());
        const after = new Map<string, KeyNumber>(numbers.map((each) => [`${each.consumer} ${each.key}`, each]));
        for (const each of expected.numbers) after.set(`${each.consumer} ${each.key}`, each);
        expect(actual.numbers).toEqual(
          [...after.values()].toSorted((one, other) =>
            `${one.consumer} ${one.key}` < `${other.consumer} ${other.key}` ? -1 : 1,
          ),
        );
      }),
      runs,
    );
  });

  async function publish(
    tx: Queryable,
    events: readonly EventToStamp[],
  ): Promise<{ stamps: unknown[]; owed: string[]; numbers: KeyNumber[] }> {
    const given = events.map(({ id, key, switchovers }) => ({
      id,
      type: key === null ? 'orders.plain' : 'orders.keyed',
      version: 1,
      key,
      data: {},
      switchovers,
    }));
    const published = await tx.query<{ id: string; stamps: unknown }>(
      "select id::text as id, stamps from turnout.publish_events('orders', $1::json)",
      [JSON.stringify(given)],
    );
    const owed = await tx.query<{ effect_key: string }>('select effect_key from turnout.rpc_delivery');
    const numbers = await tx.query<KeyNumber>(
      'select consumer, topic, key, generation, number::integer as number from turnout.key_number order by consumer, key',
    );
    return {
      stamps: published.rows.map(({ stamps }) => stamps),
      owed: owed.rows.map(({ effect_key }) => effect_key).toSorted(),
      numbers: numbers.rows,
    };
  }
});

const turns = fc.option(
  fc.record({ generation: fc.integer({ min: 1, max: 2 }), number: fc.integer({ min: 1, max: 4 }) }),
  {
    nil: undefined,
  },
);

describe('what the sweeper may call', () => {
  const timeoutMs = 60_000;
  const minute = 60_000;
  const owed = fc
    .array(
      fc.record({
        switchover: fc.constantFrom('s0', 's1'),
        // Two consumers; those of one switchover, and for calls without order also of another.
        consumer: fc.constantFrom('c0', 'c1'),
        key: fc.constantFrom(...keys),
        turn: turns,
        // Minutes from now, each at most once, so that there is one order.
        due: fc.option(
          fc.integer({ min: -50, max: 50 }).filter((minutes) => minutes !== 0),
          { nil: undefined },
        ),
      }),
      { maxLength: 8 },
    )
    .map((given) =>
      given
        .filter(({ due }, at) => due === undefined || given.findIndex((other) => other.due === due) === at)
        .map(({ due, ...rest }, at): OwedRow => ({
          ...rest,
          effectKey: `e${at}`,
          topic: 'orders',
          dueAt: due === undefined ? undefined : due * minute,
        })),
    );

  test('is the same in SQL', async () => {
    await fc.assert(
      fc.asyncProperty(owed, fc.integer({ min: 1, max: 4 }), async (rows, limit) => {
        const expected = {
          claimed: claimable(rows, { switchover: 's0', now: 0, limit })
            .map(({ effectKey }) => effectKey)
            .toSorted(),
          adopted: adopt(rows, { switchover: 's0', now: 0, timeoutMs }).map(({ effectKey, dueAt }) => [
            effectKey,
            Math.round(dueAt! / minute),
          ]),
        };
        const actual = await tried(async (tx) => {
          await insertSwitchovers(
            tx,
            ['s0', 's1'].map((name) => ({
              name,
              consumer: name,
              order: 'none',
              stage: 'rpc',
              percent: 0,
              salt: '',
              epoch: 1,
              generation: 1,
            })),
          );
          await insertOwed(tx, rows);
          await claimDue(tx, 'orders', { name: 's0', timeoutMs }, limit, silentLogger);
          const claimed = await tx.query<{ effect_key: string }>(
            'select effect_key from turnout.rpc_delivery where attempts = 1 order by effect_key collate "C"',
          );
          await adoptInSql(tx, 'orders', { name: 's0', timeoutMs });
          const adopted = await tx.query<{ effect_key: string; minutes: number }>(
            `select effect_key, round(extract(epoch from due_at - now()) / 60)::integer as minutes from turnout.rpc_delivery
              where effect_key = any ($1::text[]) order by effect_key collate "C"`,
            [expected.adopted.map(([effectKey]) => effectKey)],
          );
          return {
            claimed: claimed.rows.map(({ effect_key }) => effect_key),
            adopted: adopted.rows.map(({ effect_key, minutes }) => [effect_key, minutes]),
          };
        });
        expect(actual).toEqual(expected);
      }),
      runs,
    );
  });

  async function insertOwed(tx: Queryable, rows: readonly OwedRow[]): Promise<void> {
    await tx.query(
      `insert into turnout.rpc_delivery (effect_key, source, switchover, stripe, consumer, event_id, seq, xid, topic, key, generation, number, epoch, due_at)
       select r."effectKey", 'orders', r.switchover, 0, r.consumer, gen_random_uuid(), 1, '1', r.topic, r.key, (r.turn ->> 'generation')::integer,
              (r.turn ->> 'number')::bigint, 1, now() + r."dueAt" * interval '1 millisecond'
         from jsonb_to_recordset($1::jsonb) as r ("effectKey" text, switchover text, consumer text, topic text, key text, turn jsonb, "dueAt" bigint)`,
      [JSON.stringify(rows)],
    );
  }
});

describe('which held event is next', () => {
  const held = fc
    .array(fc.record({ reason: fc.constantFrom('early', 'parked', 'behind'), turn: turns }), { maxLength: 6 })
    .map((given) => given.map((each, at): HeldOfKey => ({ ...each, id: at, effectKey: `e${at}` })));
  const gates = fc.option(
    fc.record({
      generation: fc.integer({ min: 1, max: 2 }),
      lastNumber: fc.integer({ min: 0, max: 4 }),
      halted: fc.option(fc.constant('halted'), { nil: undefined }),
    }),
    { nil: undefined },
  );

  test('and which is in the way of another is the same in SQL', async () => {
    await fc.assert(
      fc.asyncProperty(held, gates, fc.boolean(), async (all, gate, hasNumber) => {
        const expected = {
          next: nextOf(all, gate)?.effectKey,
          blocked: all.some((each) => isInTheWayOf(each, gate, hasNumber)),
        };
        const actual = await tried(async (tx) => {
          await insertHeld(tx, all, gate);
          const next = await nextHeld(tx, { consumer: 'c', source: 'orders', topic: 'orders', key: 'a' });
          const owned = {
            consumer: 'c',
            topic: 'orders',
            partition: 0,
            epoch: 1n,
            next: 0n,
            since: 0n,
            sequences: new Map(),
          };
          const { blocked } = await advance(
            tx,
            owned,
            { next: 0n, sequences: new Map(), alarms: [] },
            { effectKey: 'another', source: 'orders', key: 'a', hasNumber },
          );
          return { next: next?.effectKey, blocked };
        });
        expect(actual).toEqual(expected);
      }),
      runs,
    );
  });

  async function insertHeld(tx: Queryable, all: readonly HeldOfKey[], gate: Gate | undefined): Promise<void> {
    await tx.query("insert into turnout.assignment (consumer, topic, partition, epoch) values ('c', 'orders', 0, 1)");
    if (gate !== undefined) {
      await tx.query(
        `insert into turnout.gate (consumer, source, topic, key, generation, last_number, halted)
         values ('c', 'orders', 'orders', 'a', $1, $2, $3)`,
        [gate.generation, gate.lastNumber, gate.halted ?? null],
      );
    }
    await tx.query(
      `insert into turnout.held (consumer, effect_key, reason, source, topic, partition, "offset", key, generation, number, message)
       select 'c', h."effectKey", h.reason, 'orders', 'orders', 0, h.id, 'a', (h.turn ->> 'generation')::integer, (h.turn ->> 'number')::bigint,
              '{"key": "a", "value": null, "headers": {}}'
         from jsonb_to_recordset($1::jsonb) as h ("effectKey" text, reason text, id bigint, turn jsonb)
        order by h.id`,
      [JSON.stringify(all)],
    );
  }
});
