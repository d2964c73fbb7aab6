import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Kafka, logLevel } from 'kafkajs';
import type { Pool } from 'pg';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createDatabase, spawnNode, uniqueName, waitFor } from '../support/index.ts';
import type { Database, NodeProcess } from '../support/index.ts';
import { sharedKafka, sharedPostgres } from '../support/vitest.ts';

const main = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const config = fileURLToPath(new URL('./fixtures/cli/turnout.config.ts', import.meta.url));

let producer: Database;
let consumer: Database;
let shop: Pool;
let mail: Pool;
let environment: Record<string, string>;
const topic = uniqueName('cli');
const group = uniqueName('cli-email').replaceAll('_', '-');

beforeAll(async () => {
  const postgres = await sharedPostgres();
  const { brokers } = await sharedKafka();
  producer = await createDatabase(postgres);
  consumer = await createDatabase(postgres);
  shop = producer.pool();
  mail = consumer.pool();
  await mail.query('create table mail (order_id text)');
  environment = {
    TEST_TOPIC: topic,
    TEST_PRODUCER_URL: producer.url,
    TEST_CONSUMER_URL: consumer.url,
    TEST_BROKERS: brokers.join(','),
    TEST_CONSUMER: group,
  };
});

afterAll(async () => {
  await Promise.all([producer.drop(), consumer.drop()]);
});

function start(...args: string[]): NodeProcess {
  return spawnNode(main, [...args, '--config', config], environment);
}

/** Runs a command with --json to its end. */
async function turnout(
  ...args: string[]
): Promise<{ code: number | null; data: Record<string, unknown>; output: string }> {
  const command = start(...args, '--json');
  const { code } = await command.exited;
  const line = command.output.split('\n').findLast((each) => each.startsWith('{"ok"'));
  return { code, data: JSON.parse(line ?? '{}') as Record<string, unknown>, output: command.output };
}

const codeOf = (data: Record<string, unknown>): unknown => (data['error'] as { code?: unknown } | undefined)?.code;

// One after the other, as an operator would.
describe('turnout, from an empty database to events and back', () => {
  it('says which database lacks which migrations, instead of what PostgreSQL says', async () => {
    for (const args of [
      ['topics', 'apply', '--dry-run'],
      ['switch', 'confirmation', 'event', '--force', '--reason', 'ready'],
      ['switch', 'status'],
      ['status'],
      ['run'],
    ]) {
      const { code, data, output } = await turnout(...args);
      expect([args.join(' '), code, codeOf(data)]).toEqual([args.join(' '), 1, 'TURNOUT_MIGRATION_MISSING']);
      expect(output).toMatch(/The database of shop \([^)]+\) lacks producer\/000001_outbox/);
    }
  });

  it('migrates each configured database with what it needs, and only once', async () => {
    const dry = await turnout('migrate', '--dry-run');
    expect(dry.code).toBe(0);
    expect(dry.data['applied']).toContainEqual({
      database: 'shop',
      migration: 'producer/000001_outbox',
      state: 'pending',
    });
    expect(dry.data['applied']).toContainEqual({
      database: group,
      migration: 'consumer/000001_inbox',
      state: 'pending',
    });
    expect((await shop.query("select to_regclass('turnout.outbox') as made")).rows).toEqual([{ made: null }]);

    expect((await turnout('migrate')).code).toBe(0);
    expect((await shop.query("select to_regclass('turnout.inbox') as made")).rows).toEqual([{ made: null }]);
    expect((await turnout('migrate')).data).toMatchObject({ ok: true, applied: [] });
  });

  it('says first what it would do to topics, then does it, then finds it done', async () => {
    const dry = await turnout('topics', 'apply', '--dry-run');
    expect(dry.data).toMatchObject({ ok: true, topics: [{ topic, partitions: 2, change: 'created' }] });
    expect((await shop.query('select from turnout.event_type')).rowCount).toBe(0);

    expect((await turnout('topics', 'apply')).code).toBe(0);
    expect((await shop.query('select name from turnout.event_type')).rows).toEqual([{ name: 'shop.order-placed' }]);
    expect((await turnout('topics', 'apply')).data).toMatchObject({ topics: [{ change: 'unchanged' }] });
  });

  it('creates a switchover only when older transactions are over, and records where the consumer starts', async () => {
    const older = await shop.connect();
    await older.query('begin');
    await older.query('select pg_current_xact_id()');
    const creating = start('switch', 'confirmation', 'rpc', '--json');
    try {
      await waitFor(() => creating.output.includes('Waiting for transactions'), {
        what: 'the command to wait',
        deadlineMs: 20_000,
      });
      expect((await shop.query('select since from turnout.switchover')).rows).toEqual([{ since: null }]);
    } finally {
      await older.query('commit');
      older.release();
    }
    expect((await creating.exited).code).toBe(0);
    expect((await shop.query('select stage, since from turnout.switchover')).rows).toEqual([
      { stage: 'rpc', since: { [topic]: ['0', '0'] } },
    ]);

    const admin = new Kafka({
      brokers: (environment['TEST_BROKERS'] ?? '').split(','),
      logLevel: logLevel.NOTHING,
    }).admin();
    await admin.connect();
    const [committed] = await admin.fetchOffsets({ groupId: group, topics: [topic] });
    await admin.disconnect();
    expect(committed?.partitions.map(({ offset }) => offset)).toEqual(['0', '0']);
  });

  it('refuses a promotion without a reason, without force, and to a stage that there is not', async () => {
    const unreasoned = await turnout('switch', 'confirmation', 'event', '--force');
    expect([unreasoned.code, codeOf(unreasoned.data)]).toEqual([1, 'TURNOUT_REASON_MISSING']);
    const unforced = await turnout('switch', 'confirmation', 'event', '--reason', 'ready');
    // Nobody consumes yet.
    expect([unforced.code, codeOf(unforced.data)]).toEqual([1, 'TURNOUT_CHECKS_NOT_READY']);
    const neither = await turnout('switch', 'confirmation', 'ramp');
    expect([neither.code, codeOf(neither.data)]).toEqual([1, 'TURNOUT_REASON_MISSING']);
    for (const code of ['TURNOUT_REASON_MISSING', 'TURNOUT_PERCENT_INVALID', 'TURNOUT_CHECKS_NOT_READY'])
      expect(neither.output).toContain(`[${code}]`);
    const unknown = await turnout('switch', 'confirmation', 'sideways', '--reason', 'why not');
    expect([unknown.code, codeOf(unknown.data)]).toEqual([1, 'TURNOUT_STAGE_UNKNOWN']);
    const nobody = await turnout('switch', 'nobody', 'rpc');
    expect([nobody.code, codeOf(nobody.data)]).toEqual([1, 'TURNOUT_SWITCHOVER_UNKNOWN']);
    const mistyped = await turnout('switch', 'confirmatoin', 'event', '--reason', 'ready');
    expect(mistyped.output).toContain('did you mean confirmation?');
    expect((await turnout('switch', 'confirmation', 'evnet', '--reason', 'ready')).output).toContain(
      'rpc, shadow, ramp, event, done; did you mean event?',
    );
    const nothing = await turnout('switch', 'confirmation', 'rpc');
    expect(nothing.data).toMatchObject({ ok: true, changed: false, epoch: 1 });
  });

  it('sets a stage and tells the history', async () => {
    const promoted = await turnout('switch', 'confirmation', 'event', '--force', '--reason', 'ready');
    expect(promoted.data).toMatchObject({ ok: true, stage: 'event', epoch: 2 });
    const history = await turnout('switch', 'history', 'confirmation');
    expect(history.data['changes']).toMatchObject([
      { to: 'rpc', epoch: 1, reason: 'created' },
      { from: 'rpc', to: 'event', epoch: 2, reason: 'ready', forced: true },
    ]);
    const status = await turnout('switch', 'status');
    expect(status.data['switchovers']).toMatchObject([{ name: 'confirmation', stage: 'event' }]);
  });

  it('publishes with `run` and applies with `consume`; both stop in order on SIGTERM', async () => {
    const running = start('run');
    const consuming = start('consume', group, '--json');
    await Promise.all([
      running.line(/^turnout run: ready$/, { deadlineMs: 30_000 }),
      consuming.line(/^\{"ok":true,.*"state":"ready"\}$/, { deadlineMs: 30_000 }),
    ]);
    await shop.query(
      `select turnout.publish('shop', 'shop.order-placed', 1, 'order-1', '{"orderId": "order-1"}', switchovers => '{confirmation}')`,
    );
    await waitFor(async () => (await mail.query('select from mail')).rowCount === 1, {
      what: 'the mail',
      deadlineMs: 20_000,
    });
    expect(await Promise.all([running.kill('SIGTERM'), consuming.kill('SIGTERM')])).toEqual([
      { code: 0, signal: null },
      { code: 0, signal: null },
    ]);
    expect(running.output).toContain('turnout run: stopped');
    const last = consuming.output.split('\n').findLast((line) => line.startsWith('{"ok"'))!;
    expect(JSON.parse(last)).toEqual({ ok: true, service: `consumer ${group}`, state: 'stopped' });
  });

  it('tells for each switchover what is promised and what is not', async () => {
    const status = start('status');
    expect((await status.exited).code).toBe(0);
    expect(status.output).toContain('confirmation');
    expect(status.output).toContain('NOT promised: order between effects');
  });

  it('gives sources a new generation, for a reason', async () => {
    expect((await turnout('relay', 'rebase')).code).toBe(2);
    const { code, data } = await turnout('relay', 'rebase', '--reason', 'restored from a backup');
    expect([code, data]).toEqual([0, { ok: true, sources: [{ source: 'shop', generation: 2 }], copied: false }]);
  });

  it('knows the consumers of the configuration', async () => {
    const nobody = await turnout('consume', 'nobody');
    expect([nobody.code, codeOf(nobody.data)]).toEqual([1, 'TURNOUT_HANDLER_MISSING']);
    expect(nobody.output).toContain(group);
  });
});

describe('a configuration that is not right', () => {
  const folder = mkdtempSync(join(tmpdir(), 'turnout-cli-'));
  afterAll(() => rmSync(folder, { recursive: true }));

  async function withConfig(text: string): Promise<{ code: number | null; data: Record<string, unknown> }> {
    const file = join(folder, `${uniqueName('config')}.config.ts`);
    writeFileSync(file, text);
    const command = spawnNode(main, ['status', '--json', '--config', file]);
    const { code } = await command.exited;
    const line = command.output.split('\n').findLast((each) => each.startsWith('{'));
    return { code, data: JSON.parse(line ?? '{}') as Record<string, unknown> };
  }

  it.each([
    ['is not there', undefined, 'There is no'],
    ['throws', `throw new Error('no address');`, 'no address'],
    ['has an unknown field', `export default { databse: 1 };`, 'unknown field databse'],
    ['names a source without a database', `export default { source: 'shop', events: [] };`, 'no database'],
    ['lacks what the command needs', `export default {};`, '`turnout status` needs `source`'],
    ['exports nothing', `export const other = 1;`, 'does not export a configuration'],
  ])('%s: is refused with its code and why', async (_what, text, why) => {
    const { code, data } =
      text === undefined ? await turnoutWithout(join(folder, 'nowhere.config.ts')) : await withConfig(text);
    expect([code, codeOf(data)]).toEqual([1, 'TURNOUT_CONFIG_INVALID']);
    expect((data['error'] as { message: string }).message).toContain(why);
  });

  async function turnoutWithout(file: string): Promise<{ code: number | null; data: Record<string, unknown> }> {
    const command = spawnNode(main, ['status', '--json', '--config', file]);
    const { code } = await command.exited;
    return {
      code,
      data: JSON.parse(command.output.split('\n').findLast((each) => each.startsWith('{')) ?? '{}') as Record<
        string,
        unknown
      >,
    };
  }

  it('a wrong command line ends with status 2 and says what is possible', async () => {
    const command = spawnNode(main, ['sideways']);
    expect((await command.exited).code).toBe(2);
    expect(command.output).toContain('--help');
  });
});
