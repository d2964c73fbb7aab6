import { describe, expect, test } from 'vitest';
import { isTurnoutError } from '../../src/errors/index.ts';
import { compare } from '../../src/database/migrate.ts';
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
    const names = migrationFiles(['roles', 'consumer', 'producer']).map((file) => file.name);
    expect(names[0]).toBe('producer/000001_outbox');
    expect(names).toContain('consumer/000001_inbox');
    expect(names.at(-1)).toBe('roles/000001_roles');
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

  test('a database that is newer is refused; other sets are none of ours', () => {
    expect(code([['producer/000009_later', 'x']])).toBe('TURNOUT_DATABASE_NEWER');
    expect(code([['consumer/000009_later', 'x']])).toBeUndefined();
  });

  test('roles are always granted anew', () => {
    const roles = migrationFile('roles', '000001_roles.sql', 'select 1;');
    expect(compare([roles], new Map([[roles.name, roles.checksum]])).pending).toEqual([roles]);
    expect(compare([roles], new Map([[roles.name, 'other']])).problem).toBeUndefined();
    expect(isTurnoutError(compare([roles], new Map()).problem)).toBe(false);
  });
});
