import { describe, expect, it } from 'vitest';
import { runService } from '../../src/cli/commands/run-service.ts';
import { guaranteeOf } from '../../src/cli/guarantee.ts';
import { describeError, errorText, table, toJson } from '../../src/cli/output.ts';
import { nearest } from '../../src/cli/nearest.ts';
import { runCli } from '../../src/cli/program.ts';
import { need, validateConfig } from '../../src/cli/validate-config.ts';
import { isTurnoutError, TurnoutError } from '../../src/errors/index.ts';
import { service, sleep } from '../../src/lifecycle/index.ts';

const nothing = (): void => undefined;
const database = { connect: nothing, query: nothing, transaction: nothing, within: nothing };
const broker = { publisher: nothing, source: nothing, topics: nothing };
const event = { name: 'shop.order-placed', version: 1, topic: {}, schema: {} };
const switchover = { name: 'confirmation', consumer: 'email', rpc: [] };

function refused(config: unknown): { path: unknown; message: string } {
  try {
    validateConfig(config, 'turnout.config.ts');
  } catch (error) {
    if (isTurnoutError(error, 'TURNOUT_CONFIG_INVALID')) return { path: error.details['path'], message: error.message };
    throw error;
  }
  throw new Error('It was taken.');
}

describe('a configuration', () => {
  it('is taken when it holds what it may', () => {
    const full = {
      source: 'shop',
      database,
      broker,
      events: [event],
      switchovers: [switchover],
      consumers: [],
      close: nothing,
    };
    expect(validateConfig(full, 'turnout.config.ts')).toBe(full);
    expect(validateConfig({ broker: undefined }, 'turnout.config.ts')).toEqual({});
  });

  it.each([
    ['nothing', undefined, 'default'],
    ['a field that is misspelt', { databse: database }, 'databse'],
    ['a source that is no name', { source: 'The Shop', database, events: [] }, 'source'],
    ['a pool where a database is wanted', { database: { query: nothing, connect: nothing } }, 'database'],
    ['a client where a broker is wanted', { broker: { producer: nothing } }, 'broker'],
    ['something among the events that is none', { source: 'shop', database, events: [event, 'x'] }, 'events'],
    ['an event twice', { source: 'shop', database, events: [event, event] }, 'events'],
    ['a source without a database', { source: 'shop', events: [] }, 'database'],
    ['a source without events', { source: 'shop', database }, 'events'],
    ['switchovers without a source', { switchovers: [switchover] }, 'source'],
    [
      'a switchover twice',
      { source: 'shop', database, events: [], switchovers: [switchover, switchover] },
      'switchovers',
    ],
    ['a close that is no function', { close: true }, 'close'],
  ])('is refused, with the path, for %s', (_what, config, path) => {
    const { path: named, message } = refused(config);
    expect(named).toBe(path);
    expect(message).toContain('turnout.config.ts');
  });

  it('is asked for what a command needs', () => {
    expect(need({ source: 'shop' }, 'run', 'source').source).toBe('shop');
    expect(() => need({}, 'run', 'source', 'database')).toThrow('`turnout run` needs `source`');
  });
});

describe('errors on the command line', () => {
  it('are told in two parts with their code', () => {
    const error = new TurnoutError('TURNOUT_REASON_MISSING', 'A stage change needs a reason.', {
      details: { switchover: 'x' },
    });
    expect(describeError(error)).toEqual({
      code: 'TURNOUT_REASON_MISSING',
      message: 'A stage change needs a reason.',
      remedy: 'Say why, with --reason; the history keeps it.',
      details: { switchover: 'x' },
    });
    expect(errorText(error)).toBe(
      'turnout: A stage change needs a reason.\n  Say why, with --reason; the history keeps it.\n  [TURNOUT_REASON_MISSING]\n',
    );
  });

  it('are known by their fields when they come from another instance of the package', () => {
    const foreign = Object.assign(new Error('There is no stage x. Use one of rpc, shadow, ramp, event, done.'), {
      code: 'TURNOUT_STAGE_UNKNOWN',
    });
    expect(describeError(foreign)).toMatchObject({ message: 'There is no stage x.', remedy: expect.any(String) });
  });

  it('of others keep their own words', () => {
    expect(describeError(Object.assign(new Error('no'), { code: 'ECONNREFUSED' }))).toEqual({
      code: 'ECONNREFUSED',
      message: 'no',
    });
    expect(describeError('odd')).toEqual({ code: 'UNKNOWN', message: 'odd' });
  });
});

describe('what is promised for a switchover', () => {
  const since = { 'shop.orders': [0n] };

  it('says what is not', () => {
    const promised = guaranteeOf({ stage: 'event', order: 'none', since }, { mode: 'detached' });
    expect(promised.filter((line) => line.startsWith('NOT'))).toHaveLength(2);
  });

  it('says that a consumer’s start is missing', () => {
    expect(guaranteeOf({ stage: 'rpc', order: 'key', since: undefined }, undefined).at(-1)).toContain('NOT ready');
    expect(guaranteeOf({ stage: 'rpc', order: 'key', since }, { mode: 'transaction' }).join()).not.toContain(
      'NOT ready',
    );
  });
});

describe('output', () => {
  it('aligns columns and leaves nothing behind the last', () => {
    expect(table(['a', 'long head'], [['wide cell', 'b']])).toBe('a          long head\nwide cell  b');
  });

  it('writes bigints as text', () => {
    expect(toJson({ seq: 12n })).toBe('{"seq":"12"}');
  });
});

describe('with --json', () => {
  /** What a command prints, a line each. */
  async function printed(...args: string[]): Promise<{ status: number; lines: string[] }> {
    let text = '';
    const status = await runCli([...args, '--json'], {
      cwd: '/nowhere',
      stdout: (more) => (text += more),
      stderr: nothing,
      interactive: false,
      stopSignal: () => AbortSignal.abort(),
    });
    return { status, lines: text.trimEnd().split('\n') };
  }

  it.each([
    [['--help'], 0, { ok: true }],
    [['switch', 'check', '--help'], 0, { ok: true }],
    [['--version'], 0, { ok: true, version: expect.any(String) }],
    [[], 2, { ok: false, error: { code: expect.stringMatching(/^commander/) } }],
    [['sideways'], 2, { ok: false, error: { code: 'commander.unknownCommand' } }],
    [['run'], 1, { ok: false, error: { code: 'TURNOUT_CONFIG_INVALID' } }],
  ])('the last line of %j is one JSON object', async (args, status, object) => {
    const { status: was, lines } = await printed(...args);
    expect([was, JSON.parse(lines.at(-1)!)]).toMatchObject([status, object]);
  });

  it('a file that was named and is not there is named again', async () => {
    const { lines } = await printed('switch', 'confirmation', 'event', '--config', 'wrong.config.ts');
    expect(lines.at(-1)).toContain('There is no /nowhere/wrong.config.ts, which was named with --config.');
  });

  it('a service says so twice: ready, and stopped; with its error if it fails', async () => {
    const lines: unknown[] = [];
    const stop = new AbortController();
    const io = {
      cwd: '/nowhere',
      stdout: (text: string) => {
        lines.push(JSON.parse(text));
        stop.abort();
      },
      stderr: nothing,
      interactive: false,
      json: true,
      stopSignal: () => stop.signal,
    };
    const lasting = service('email', async (signal, ready) => {
      ready();
      while (await sleep(1_000, signal));
    });
    await runService(lasting, io);
    const states = ['ready', 'stopped'].map((state) => ({ ok: true, service: 'email', state }));
    expect(lines).toEqual(states);
    // Asked to stop before it has begun.
    await runService(lasting, io);
    expect(lines.slice(2)).toEqual(states.slice(1));
    const failing = service('email', () => Promise.reject(new Error('no database')));
    await expect(runService(failing, { ...io, stopSignal: () => new AbortController().signal })).rejects.toThrow(
      'no database',
    );
  });
});

describe('a mistyped name', () => {
  it.each([
    ['evnet', 'event'],
    ['Ramp', 'ramp'],
    ['shaddow', 'shadow'],
    ['sideways', undefined],
    ['x', undefined],
  ])('%s is taken for %s', (given, meant) => {
    expect(nearest(given, ['rpc', 'shadow', 'ramp', 'event', 'done'])).toBe(meant);
  });
});

describe('several reasons against a stage change', () => {
  it('are told one after the other, each with its remedy and what was found', () => {
    const error = new TurnoutError('TURNOUT_REASON_MISSING', 'Two things.', {
      details: {
        problems: [
          { code: 'TURNOUT_REASON_MISSING', message: 'A stage change needs a reason.', details: {} },
          {
            code: 'TURNOUT_CHECKS_NOT_READY',
            message: 'The newest check says not-ready.',
            details: {
              findings: [
                { check: 'since', verdict: 'ready', why: 'there', remedy: '' },
                { check: 'lag', verdict: 'not-ready', why: '500 behind.', remedy: 'Wait.' },
              ],
            },
          },
        ],
      },
    });
    expect(errorText(error).split('\n')).toEqual([
      'turnout: There are 2 reasons against it.',
      'A stage change needs a reason.',
      '  Say why, with --reason; the history keeps it.',
      '  [TURNOUT_REASON_MISSING]',
      'The newest check says not-ready.',
      '  - lag: not-ready: 500 behind. Wait.',
      expect.stringContaining('--force'),
      '  [TURNOUT_CHECKS_NOT_READY]',
      '',
    ]);
  });
});
