import { describe, expect, test } from 'vitest';
import { isTurnoutError } from '../../src/errors/index.ts';
import { breaksOlder, compare } from '../../src/database/migrate.ts';
import { migrationFile, migrationFiles } from '../../src/database/migration-files.ts';

const one = migrationFile('producer', '000001_one.sql', 'create table turnout.one (id int);\n');
const two = migrationFile('producer', '000002_two.sql', 'create table turnout.two (id int);\n');

describe('migration files', () => {
  test('have the same checksum with any line ends', () => {
    const windows = migrationFile('producer', '000001_one.sql', 'create table turnout.one (id int);\r\n');
    expect(windows.checksum).toBe(one.checksum);
    expect(migrationFile('producer', '000001_one.sql', `${one.sql} `).checksum).not.toBe(one.checksum);
  });

  test('tell what they create, but not what may have been there before', () => {
    const file = migrationFile(
      'consumer',
      '000002_more.sql',
      'create table turnout.a (\n);\ncreate unique index b on turnout.a (x);\ncreate function turnout.c(x text)\ncreate or replace function turnout.d()\ncreate table if not exists turnout.e ();\n  create table turnout.%I',
    );
    expect(file.creates).toEqual([
      { kind: 'relation', name: 'a' },
      { kind: 'relation', name: 'b' },
      { kind: 'function', name: 'c' },
    ]);
  });

  test('are found from where this runs, producer first, roles last', () => {
    const files = migrationFiles(['roles', 'consumer', 'producer']);
    expect([...new Set(files.map((file) => file.set))]).toEqual(['producer', 'consumer', 'roles']);
    for (const set of ['producer', 'consumer', 'roles'] as const) {
      const numbers = files.filter((file) => file.set === set).map((file) => Number(/\/(\d{6})_/.exec(file.name)?.[1]));
      // In the order of their numbers, none twice, none left out.
      expect(numbers).toEqual(numbers.map((_, index) => index + 1));
      expect(numbers.length).toBeGreaterThan(0);
    }
    expect(migrationFiles(['producer', 'consumer']).every((file) => file.creates.length > 0)).toBe(true);
  });
});

describe('what is recorded against what there is', () => {
  const code = (recorded: [string, string][]) => compare([one, two], new Map(recorded)).problem?.code;

  test('what is missing is pending, in order', () => {
    expect(compare([one, two], new Map()).pending).toEqual([one, two]);
    expect(compare([one, two], new Map([[one.name, one.checksum]])).pending).toEqual([two]);
    expect(
      compare(
        [one, two],
        new Map([
          [one.name, one.checksum],
          [two.name, two.checksum],
        ]),
      ).pending,
    ).toEqual([]);
  });

  test('a changed file is refused', () => {
    expect(code([[one.name, 'other']])).toBe('TURNOUT_MIGRATION_CHANGED');
  });

  test('what a newer version has applied is named; other sets are none of ours', () => {
    expect(compare([one, two], new Map([['producer/000009_later', 'x']])).unknown).toEqual(['producer/000009_later']);
    expect(compare([one, two], new Map([['consumer/000009_later', 'x']])).unknown).toEqual([]);
    expect(breaksOlder('producer/000009_later')).toBe(false);
    expect(breaksOlder('producer/000009_breaking_later')).toBe(true);
  });

  test('roles are always granted anew', () => {
    const roles = migrationFile('roles', '000001_roles.sql', 'select 1;');
    expect(compare([roles], new Map([[roles.name, roles.checksum]])).pending).toEqual([roles]);
    expect(compare([roles], new Map([[roles.name, 'other']])).problem).toBeUndefined();
    expect(isTurnoutError(compare([roles], new Map()).problem)).toBe(false);
  });
});
