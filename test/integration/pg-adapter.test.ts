import { Pool, type PoolClient, type types } from 'pg';
import { describe, expect, test } from 'vitest';
import { joinPool, pgDatabase } from '../../adapters/pg/index.ts';
import { freePort, startPostgres, waitFor } from '../support/index.ts';
import { database } from '../support/vitest.ts';

const template = {
  key: 'adapter',
  prepare: async (url: string) => {
    const pool = new Pool({ connectionString: url, max: 1 });
    await pool.query('create table note (text text primary key)');
    await pool.end();
  },
};

async function newDatabase(options: { max?: number; connectTimeoutMs?: number } = {}) {
  const { max = 6, connectTimeoutMs = 3_000 } = options;
  const raw: Pool = (await database({ template })).pool({ max });
  const legacy = joinPool(raw);
  const db = pgDatabase(legacy, { connectTimeoutMs });
  const notes = async (): Promise<string[]> =>
    (await raw.query<{ text: string }>('select text from note n order by n.text')).rows.map((row) => row.text);
  return { raw, legacy, db, notes };
}

const write = (to: { query(sql: string, values: unknown[]): Promise<unknown> }, text: string): Promise<unknown> =>
  to.query('insert into note values ($1)', [text]);
const refusal = (code: string) => expect.objectContaining({ code });
const ended = (told: string[]) => ({
  committed: () => void told.push('committed'),
  rolledBack: () => void told.push('rolled back'),
});

interface Wire {
  parse(query: object, more: boolean): void;
  bind(config: object, more: boolean): void;
  execute(config: object, more: boolean): void;
  close(message: object, more: boolean): void;
  flush(): void;
  sync(): void;
}

/** What `pg-cursor` does, cut down: rows of one text column, read when asked for. */
class Cursor {
  readonly #text: string;
  #wire: Wire | undefined;
  #rows: string[] = [];
  #failure: Error | undefined;
  #reading: { count: number; resolve: (rows: string[]) => void; reject: (error: unknown) => void } | undefined;

  constructor(text: string) {
    this.#text = text;
  }
  submit(wire: Wire): void {
    this.#wire = wire;
    wire.parse({ text: this.#text }, true);
    wire.bind({ values: [] }, true);
    wire.flush();
    if (this.#reading !== undefined) this.#fetch(this.#reading.count);
  }
  read(count: number): Promise<string[]> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) reject(this.#failure);
      this.#rows = [];
      this.#reading = { count, resolve, reject };
      this.#fetch(count);
    });
  }
  #fetch(rows: number): void {
    this.#wire?.execute({ rows }, true);
    this.#wire?.flush();
  }
  close(): void {
    this.#wire?.close({ type: 'P' }, true);
    this.#wire?.sync();
  }
  handleDataRow({ fields }: { fields: string[] }): void {
    this.#rows.push(fields[0]!);
  }
  handlePortalSuspended(): void {
    this.#reading?.resolve(this.#rows);
  }
  handleCommandComplete(): void {
    this.#reading?.resolve(this.#rows);
  }
  handleError(error: Error): void {
    this.#failure = error;
    this.#reading?.reject(error);
    this.#wire?.sync();
  }
  handleRowDescription(): void {}
  handleEmptyQuery(): void {}
  handleReadyForQuery(): void {}
}

describe('a transaction', () => {
  test('hands out a client, commits, and gives the connection back', async () => {
    const { db, raw, notes } = await newDatabase({ max: 1 });
    const result = await db.transaction(async (tx) => {
      await write(tx, 'a');
      expect(raw.idleCount).toBe(0);
      return 'result';
    });
    expect(result).toBe('result');
    expect(await notes()).toEqual(['a']);
    await expect(db.transaction(() => Promise.reject(new Error('mine')))).rejects.toThrow('mine');
    expect([raw.totalCount, raw.idleCount]).toEqual([1, 1]);
  });

  test('refuses COMMIT and ROLLBACK from who it was handed to', async () => {
    const { db, notes } = await newDatabase();
    for (const command of ['commit', 'ROLLBACK', 'insert into note values (1); commit']) {
      const breaking = db.transaction(async (tx) => {
        await write(tx, 'a');
        await tx.query(command);
      });
      await expect(breaking).rejects.toEqual(refusal('TURNOUT_JOIN_REFUSED'));
    }
    expect(await notes()).toEqual([]);
  });

  test('tells an open transaction how it ended, once and at its end', async () => {
    const { db } = await newDatabase();
    const told: string[] = [];
    await db.transaction(async (tx) => {
      expect(db.whenEnded(tx, ended(told))).toBe(true);
      expect(told).toEqual([]);
    });
    expect(told).toEqual(['committed']);
    await db
      .transaction(async (tx) => {
        db.whenEnded(tx, ended(told));
        throw new Error('no');
      })
      .catch(() => undefined);
    expect(told).toEqual(['committed', 'rolled back']);
    await db
      .transaction(async (tx) => {
        db.whenEnded(tx, ended(told));
        await tx.query('select 1/0').catch(() => undefined);
      })
      .catch(() => undefined);
    expect(told).toEqual(['committed', 'rolled back', 'rolled back']);
  });

  test('tells of a rollback to a savepoint, too', async () => {
    const { db } = await newDatabase();
    const told: string[] = [];
    const register = (tx: PoolClient, name: string): void => {
      db.whenEnded(tx, {
        committed: () => void told.push(`${name} committed`),
        rolledBack: () => void told.push(`${name} rolled back`),
      });
    };
    await db.transaction(async (tx) => {
      register(tx, 'before');
      await tx.query('savepoint a');
      register(tx, 'after a');
      await tx.query('savepoint b');
      register(tx, 'after b');
      await tx.query('release b');
      await expect(tx.query('rollback to b')).rejects.toThrow(/does not exist/);
      expect(told).toEqual([]);
      await tx.query('rollback to a');
      expect(told).toEqual(['after a rolled back', 'after b rolled back']);
      register(tx, 'again');
    });
    expect(told.slice(2)).toEqual(['before committed', 'again committed']);
  });

  test('cannot tell how a transaction of the user’s own ends', async () => {
    const { db, raw } = await newDatabase();
    const client = await raw.connect();
    await client.query('begin');
    expect(db.whenEnded(client, ended([]))).toBe(false);
    await client.query('rollback');
    client.release();
  });

  test('inside another is a savepoint of it', async () => {
    const { db, notes } = await newDatabase({ max: 1 });
    const told: string[] = [];
    await db.transaction(async (tx) => {
      await write(tx, 'outer');
      await db.transaction(async (inner) => {
        await write(inner, 'inner');
        db.whenEnded(inner, ended(told));
      });
      expect(told).toEqual([]);
      const failing = db.transaction(async (inner) => {
        await write(inner, 'undone');
        db.whenEnded(inner, ended(told));
        await inner.query('select 1/0').catch(() => undefined);
      });
      await expect(failing).rejects.toEqual(refusal('TURNOUT_TRANSACTION_ABORTED'));
      expect(told).toEqual(['rolled back']);
      await write(tx, 'still open');
    });
    expect(told).toEqual(['rolled back', 'committed']);
    expect(await notes()).toEqual(['inner', 'outer', 'still open']);
  });

  test('says that the outcome is unknown when the connection is lost at the commit', async () => {
    const { db, raw } = await newDatabase();
    const lost = db.transaction(async (tx) => {
      await write(tx, 'a');
      const { rows } = await tx.query<{ pid: number }>('select pg_backend_pid() as pid');
      // The constraint is checked at the commit, which therefore takes long enough to be cut off.
      await tx.query(`create function pg_temp.slow() returns trigger language plpgsql as $$ begin perform pg_sleep(30); return null; end $$;
        create constraint trigger slow after insert on note initially deferred for each row execute function pg_temp.slow();
        insert into note values ('b')`);
      void waitFor(async () => {
        const { rowCount } = await raw.query(
          "select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and query = 'commit'",
          [rows[0]!.pid],
        );
        return rowCount === 1;
      });
    });
    await expect(lost).rejects.toEqual(refusal('TURNOUT_COMMIT_UNKNOWN'));
    expect((await raw.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
  });

  test('gives an error when the connection is lost in the middle', async () => {
    const { db, raw } = await newDatabase();
    const lost = db.transaction(async (tx) => {
      const { rows } = await tx.query<{ pid: number }>('select pg_backend_pid() as pid');
      await raw.query('select pg_terminate_backend($1)', [rows[0]!.pid]);
      await write(tx, 'a');
    });
    await expect(lost).rejects.toMatchObject({
      code: 'TURNOUT_DATABASE_UNREACHABLE',
      retryable: true,
      cause: expect.any(Error),
    });
    await waitFor(() => raw.totalCount === raw.idleCount);
  });
});

describe('code that knows only its pool', () => {
  test('joins the transaction that is open here, and only here', async () => {
    const { db, legacy, raw, notes } = await newDatabase();
    const outside = await db.transaction(async () => {
      await write(legacy, 'joined');
      const client = await legacy.connect();
      await write(client, 'by client');
      client.release();
      client.release();
      await new Promise<void>((resolve, reject) => {
        legacy.query('insert into note values ($1)', ['by callback'], (error) => (error ? reject(error) : resolve()));
      });
      await new Promise<void>((resolve, reject) => {
        legacy.connect((error, callbackClient, done) => {
          if (error || !callbackClient) return reject(error ?? new Error('no client'));
          callbackClient.query({ text: 'insert into note values ($1)', values: ['by config'] }, (failure: Error) => {
            done();
            if (failure) reject(failure);
            else resolve();
          });
        });
      });
      const seen = await raw.query('select from note');
      expect(seen.rowCount).toBe(0);
      return legacy;
    });
    expect(await notes()).toEqual(['by callback', 'by client', 'by config', 'joined']);
    await write(outside, 'outside');
    expect(await notes()).toHaveLength(5);
  });

  test('is rolled back with it', async () => {
    const { db, legacy, notes } = await newDatabase();
    const failing = db.transaction(async () => {
      await write(legacy, 'a');
      const client = await legacy.connect();
      await client.query('BEGIN');
      await write(client, 'b');
      await client.query('COMMIT');
      client.release();
      throw new Error('handler failed');
    });
    await expect(failing).rejects.toThrow('handler failed');
    expect(await notes()).toEqual([]);
  });

  test('BEGIN, COMMIT and ROLLBACK are savepoints, also one inside another', async () => {
    const { db, legacy, notes } = await newDatabase({ max: 1, connectTimeoutMs: 500 });
    async function legacyWork(name: string, end: string, inside?: () => Promise<void>): Promise<string> {
      const client = await legacy.connect();
      try {
        await client.query('BEGIN');
        await write(client, name);
        // What it calls has a connection of its own, as far as it knows.
        await write(legacy, `${name} by pool`);
        await inside?.();
        return (await client.query(end)).command;
      } finally {
        client.release();
      }
    }
    await db.transaction(async () => {
      expect(await legacyWork('one', 'COMMIT', async () => void (await legacyWork('two', 'ROLLBACK')))).toBe('COMMIT');
      expect(await legacyWork('three', 'ROLLBACK', async () => void (await legacyWork('four', 'COMMIT')))).toBe(
        'ROLLBACK',
      );
      expect(
        await legacyWork('five', 'COMMIT', async () => void (await legacy.query('select 1/0').catch(() => undefined))),
      ).toBe('COMMIT');
    });
    expect(await notes()).toEqual(['five', 'five by pool', 'one', 'one by pool']);
  });

  test('a failed transaction of its own that it commits is rolled back, as Postgres does', async () => {
    const { db, legacy, notes } = await newDatabase();
    await db.transaction(async (tx) => {
      const client = await legacy.connect();
      await client.query('BEGIN');
      await write(client, 'lost');
      await client.query('select 1/0').catch(() => undefined);
      expect((await client.query('COMMIT')).command).toBe('ROLLBACK');
      client.release();
      await write(tx, 'kept');
    });
    expect(await notes()).toEqual(['kept']);
  });

  test('a statement that fails fails alone, as it did before', async () => {
    const { db, legacy, notes } = await newDatabase();
    await db.transaction(async (tx) => {
      await write(legacy, 'a');
      await expect(write(legacy, 'a')).rejects.toMatchObject({ code: '23505' });
      await legacy.query("update note set text = 'b'");
      await write(tx, 'c');
    });
    expect(await notes()).toEqual(['b', 'c']);
  });

  test('work side by side is serialised: a rollback of one takes nothing of the other with it', async () => {
    const { db, legacy, notes } = await newDatabase({ max: 1 });
    await db.transaction(async (tx) => {
      const flow = async (name: string, end: string): Promise<void> => {
        const client = await legacy.connect();
        await client.query('BEGIN');
        for (let n = 0; n < 5; n++) await write(client, `${name}${n}`);
        await client.query(end);
        client.release();
      };
      await Promise.all([
        flow('a', 'ROLLBACK'),
        flow('b', 'COMMIT'),
        flow('c', 'ROLLBACK'),
        ...Array.from({ length: 5 }, (_, n) => write(legacy, `pool${n}`)),
        ...Array.from({ length: 5 }, (_, n) => write(tx, `tx${n}`)),
        db.transaction((inner) => write(inner, 'inner')),
        db
          .transaction(async (inner) => {
            await write(inner, 'undone');
            throw new Error('undone');
          })
          .catch(() => undefined),
      ]);
    });
    const five = (name: string): string[] => Array.from({ length: 5 }, (_, n) => `${name}${n}`);
    expect(await notes()).toEqual([...five('b'), 'inner', ...five('pool'), ...five('tx')]);
  });

  test('what goes on after the end of the transaction is outside it', async () => {
    const { db, legacy, notes } = await newDatabase();
    let later: Promise<unknown> = Promise.resolve();
    let stale: PoolClient | undefined;
    let proceed = (): void => undefined;
    const gate = new Promise<void>((resolve) => (proceed = resolve));
    await db.transaction(async () => {
      stale = await legacy.connect();
      later = gate.then(() => write(legacy, 'later'));
    });
    proceed();
    await later;
    expect(await notes()).toEqual(['later']);
    await expect(stale!.query('select 1')).rejects.toEqual(refusal('TURNOUT_JOIN_REFUSED'));
  });

  test.each(['BEGIN ISOLATION LEVEL SERIALIZABLE', 'BEGIN; COMMIT', "PREPARE TRANSACTION 'x'", 'COMMIT AND CHAIN'])(
    'what joining would change the meaning of is refused: %s',
    async (sql) => {
      const { db, legacy } = await newDatabase();
      await db.transaction(async () => {
        await expect(legacy.query(sql)).rejects.toEqual(refusal('TURNOUT_JOIN_REFUSED'));
      });
    },
  );

  describe('a cursor', () => {
    test('is read and closed, and others wait for it meanwhile', async () => {
      const { db, legacy, notes } = await newDatabase();
      await db.transaction(async (tx) => {
        for (const client of [await legacy.connect(), tx]) {
          const cursor = client.query(new Cursor('select n::text from generate_series(1, 5) n'));
          expect(await cursor.read(2)).toEqual(['1', '2']);
          const other = write(legacy, `other ${client === tx}`);
          expect(await cursor.read(2)).toEqual(['3', '4']);
          cursor.close();
          await other;
        }
      });
      expect(await notes()).toEqual(['other false', 'other true']);
    });

    test('that stays open while other code waits: that is refused, and nothing hangs', async () => {
      const { db, legacy, notes } = await newDatabase({ connectTimeoutMs: 100 });
      await db.transaction(async () => {
        const client = await legacy.connect();
        const cursor = client.query(new Cursor('select n::text from generate_series(1, 5) n'));
        expect(await cursor.read(1)).toEqual(['1']);
        await expect(write(legacy, 'refused')).rejects.toEqual(refusal('TURNOUT_JOIN_REFUSED'));
        const second = client.query(new Cursor('select 1'));
        await expect(second.read(1)).rejects.toEqual(refusal('TURNOUT_JOIN_REFUSED'));
        cursor.close();
        await write(legacy, 'later');
      });
      expect(await notes()).toEqual(['later']);
    });

    test.each(['handed', 'joined'])(
      'that is never closed fails the transaction and costs its connection: %s',
      async (kind) => {
        const { db, legacy, raw, notes } = await newDatabase({ connectTimeoutMs: 100, max: 1 });
        const forgetful = db.transaction(async (tx) => {
          await write(tx, 'a');
          const cursor = (kind === 'handed' ? tx : await legacy.connect()).query(new Cursor('select 1'));
          await cursor.read(1);
        });
        await expect(forgetful).rejects.toEqual(refusal('TURNOUT_JOIN_REFUSED'));
        expect(raw.totalCount).toBe(0);
        expect(await notes()).toEqual([]);
      },
    );

    test('hears of it that it can’t be sent', async () => {
      const { db, legacy } = await newDatabase();
      const failed = db.transaction(async (tx) => {
        await expect(tx.query('select 1 / 0')).rejects.toThrow(/division by zero/);
        const cursor = (await legacy.connect()).query(new Cursor('select 1'));
        await expect(cursor.read(1)).rejects.toThrow(/is aborted/);
      });
      await expect(failed).rejects.toEqual(refusal('TURNOUT_TRANSACTION_ABORTED'));
    });

    test('fails alone, where a statement does', async () => {
      const { db, legacy, notes } = await newDatabase();
      await db.transaction(async () => {
        const cursor = (await legacy.connect()).query(new Cursor('select 1 / 0'));
        await expect(cursor.read(1)).rejects.toThrow(/division by zero/);
        await write(legacy, 'a');
      });
      expect(await notes()).toEqual(['a']);
    });
  });

  test('a transaction that nobody ends is refused at the commit, not left hanging', async () => {
    const { db, legacy, notes } = await newDatabase({ connectTimeoutMs: 100 });
    const forgetful = db.transaction(async () => {
      const client = await legacy.connect();
      await client.query('BEGIN');
      await write(client, 'a');
    });
    await expect(forgetful).rejects.toEqual(refusal('TURNOUT_JOIN_REFUSED'));
    expect(await notes()).toEqual([]);
  });

  test('two databases don’t mix', async () => {
    const one = await newDatabase();
    const other = await newDatabase();
    await one.db.transaction(async () => {
      await write(other.legacy, 'other');
      await other.db.transaction(async () => {
        await write(one.legacy, 'one');
      });
      expect(await other.notes()).toEqual(['other']);
      expect(await one.notes()).toEqual([]);
    });
    expect(await one.notes()).toEqual(['one']);
  });
});

test('a pool that was only joined outlives the loss of an idle connection', async () => {
  const own = new Pool({ connectionString: (await database({ template })).url, max: 1 });
  const legacy = joinPool(joinPool(own));
  const { rows } = await legacy.query<{ pid: number }>('select pg_backend_pid() as pid');
  const { raw: other } = await newDatabase();
  await other.query('select pg_terminate_backend($1)', [rows[0]!.pid]);
  await waitFor(() => own.totalCount === 0, { what: 'the pool to drop its connection' });
  expect((await legacy.query<{ one: number }>('select 1 as one')).rows).toEqual([{ one: 1 }]);
  expect(own.listenerCount('error')).toBe(1);
  await own.end();
});

describe('a pool that is too small', () => {
  test('gives an error after a bounded wait, and no connection is lost by it', async () => {
    const { db, raw } = await newDatabase({ max: 2, connectTimeoutMs: 100 });
    const greedy = db.transaction(async () => {
      const held = await db.connect();
      try {
        await db.query('select 1');
      } finally {
        held.release();
      }
    });
    await expect(greedy).rejects.toMatchObject({ code: 'TURNOUT_POOL_TIMEOUT', retryable: true });
    await waitFor(() => raw.idleCount === raw.totalCount);
    await expect(db.query('select 1 as one')).resolves.toMatchObject({ rows: [{ one: 1 }] });
    expect(db.maxConnections).toBe(2);
  });

  test('also where pg-pool has a time-out of its own', async () => {
    const pool = (await database({ template })).pool({ max: 1, connectionTimeoutMillis: 50 });
    const db = pgDatabase(pool);
    const held = await db.connect();
    await expect(db.connect()).rejects.toEqual(refusal('TURNOUT_POOL_TIMEOUT'));
    held.release();
  });
});

test('a database that is not there is named so, with the cause', async () => {
  const pool = new Pool({ host: '127.0.0.1', port: await freePort(), max: 1 });
  const db = pgDatabase(pool, { connectTimeoutMs: 2_000 });
  const unreachable = {
    code: 'TURNOUT_DATABASE_UNREACHABLE',
    retryable: true,
    cause: expect.objectContaining({ code: 'ECONNREFUSED' }),
  };
  await expect(db.query('select 1')).rejects.toMatchObject(unreachable);
  await expect(db.connect()).rejects.toMatchObject(unreachable);
  await expect(db.transaction(async () => undefined)).rejects.toMatchObject(unreachable);
  await pool.end();
});

describe('a session', () => {
  test('gives rows as text, whatever the user has types parsed to', async () => {
    const created = await database({ template });
    const pool = created.pool({
      types: { getTypeParser: (() => () => 'parsed by the user') as unknown as typeof types.getTypeParser },
    });
    const session = await pgDatabase(pool).connect();
    const rows = await session.queryText(
      "select 1::bigint, true, null, '2026-01-01 00:00Z'::timestamptz at time zone 'UTC', '{\"a\": 1}'::jsonb, $1::int + 1, '\\x00ff'::bytea",
      [1],
    );
    expect(rows).toEqual([['1', 't', null, '2026-01-01 00:00:00', '{"a": 1}', '2', '\\x00ff']]);
    session.release();
    session.release();
    await expect(session.query('select 1')).rejects.toThrow(/given back/);
    expect([pool.totalCount, pool.idleCount]).toEqual([1, 1]);
  });

  test('is closed rather than given back if that is asked for, with its settings and locks', async () => {
    const { db, raw } = await newDatabase({ max: 1 });
    const session = await db.connect();
    await session.query('select pg_advisory_lock(1)');
    session.release(true);
    await waitFor(
      async () =>
        (
          await raw.query(
            "select from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())",
          )
        ).rowCount === 0,
    );
  });

  test('tells that its connection is lost, even while nothing runs on it', async () => {
    const postgres = await startPostgres({ restartable: true });
    const pool = new Pool({ connectionString: postgres.url, max: 2 });
    pool.on('error', () => undefined);
    try {
      const db = pgDatabase(pool, { connectTimeoutMs: 2_000 });
      const session = await db.connect();
      const open = db.transaction(async () => session.lost.then(() => db.query('select 1')));
      open.catch(() => undefined);
      await waitFor(() => pool.totalCount === 2 && pool.idleCount === 0);
      await postgres.kill();
      await session.lost;
      await expect(session.query('select 1')).rejects.toEqual(refusal('TURNOUT_DATABASE_UNREACHABLE'));
      session.release();
      await expect(open).rejects.toEqual(refusal('TURNOUT_DATABASE_UNREACHABLE'));
      await postgres.restart();
      await expect(db.query('select 1')).resolves.toBeDefined();
    } finally {
      await pool.end();
      await postgres.stop();
    }
  });
});
