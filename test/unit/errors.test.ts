import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { TurnoutError, errorKinds, fromDatabaseError, isTurnoutError } from '../../src/errors/index.ts';
import type { ErrorCode } from '../../src/errors/index.ts';

const root = join(import.meta.dirname, '..', '..');

function filesUnder(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && /\.(ts|sql)$/.test(entry.name))
    .map((entry) => join(entry.parentPath, entry.name));
}

describe('the registry of errors', () => {
  const kinds = Object.entries(errorKinds) as [ErrorCode, { sqlState?: string; remedy: string }][];

  it('says for each code what to do', () => {
    for (const [code, kind] of kinds) expect(kind.remedy, code).toMatch(/^[A-Z].*\.$/s);
  });

  it('has a code for each SQLSTATE that the SQL functions raise, and the other way round', () => {
    const raised = new Set(
      filesUnder('migrations')
        .flatMap((file) => readFileSync(file, 'utf8').match(/'TU\d{3}'/g) ?? [])
        .map((found) => found.slice(1, -1)),
    );
    const known = new Set(kinds.flatMap(([, kind]) => (kind.sqlState === undefined ? [] : [kind.sqlState])));
    expect([...raised].sort()).toEqual([...known].sort());
  });

  it('holds no code that nothing raises', () => {
    const code = ['src', 'adapters']
      .flatMap(filesUnder)
      .filter((file) => !file.endsWith('registry.ts'))
      .map((file) => readFileSync(file, 'utf8'))
      .join('\n');
    const unused = kinds
      .filter(([name, kind]) => kind.sqlState === undefined && !code.includes(name))
      .map(([name]) => name);
    expect(unused).toEqual([]);
  });
});

describe('TurnoutError', () => {
  it('says what happened, then what to do', () => {
    const error = new TurnoutError('TURNOUT_TOPIC_MISSING', 'Topic orders does not exist.', {
      details: { topic: 'orders' },
    });
    expect(error.message).toBe('Topic orders does not exist. Run `turnout topics apply`.');
    expect(error).toMatchObject({ code: 'TURNOUT_TOPIC_MISSING', retryable: false, details: { topic: 'orders' } });
    expect(isTurnoutError(error, 'TURNOUT_TOPIC_MISSING')).toBe(true);
    expect(isTurnoutError(error, 'TURNOUT_KEY_MISSING')).toBe(false);
  });

  it('is made of what a SQL function raised, also inside the error of an ORM', () => {
    const raised = Object.assign(new Error('Event type a v1 is not registered.'), {
      code: 'TU003',
      detail: '{"type":"a","version":1}',
    });
    for (const error of [raised, { message: 'QueryFailedError', driverError: raised }]) {
      expect(fromDatabaseError(error)).toMatchObject({
        code: 'TURNOUT_EVENT_TYPE_UNREGISTERED',
        details: { type: 'a', version: 1 },
      });
    }
  });

  it('leaves every other error as it is', () => {
    const other = Object.assign(new Error('duplicate key'), { code: '23505' });
    expect(fromDatabaseError(other)).toBe(other);
    expect(fromDatabaseError(undefined)).toBe(undefined);
  });
});
