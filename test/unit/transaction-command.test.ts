import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { savepointCommands, transactionCommand } from '../../src/database/transaction-command.ts';

describe('what a statement does to its transaction', () => {
  test.each([
    ['begin', 'BEGIN'],
    ['begin', 'begin;'],
    ['begin', '  -- legacy\n START TRANSACTION'],
    ['begin', 'BEGIN TRANSACTION READ WRITE'],
    ['begin', 'begin isolation level read committed'],
    ['commit', 'COMMIT'],
    ['commit', 'END TRANSACTION;'],
    ['commit', 'commit and no chain'],
    ['rollback', '/* why */ ROLLBACK'],
    ['rollback', 'abort work'],
    ['ignore', 'SET TRANSACTION READ WRITE'],
    ['ignore', 'SET TRANSACTION ISOLATION LEVEL READ COMMITTED'],
    ['refuse', 'BEGIN ISOLATION LEVEL SERIALIZABLE'],
    ['refuse', 'set transaction isolation level repeatable read'],
    ['refuse', "PREPARE TRANSACTION 'x'"],
    ['refuse', "commit prepared 'x'"],
    ['refuse', 'commit and chain'],
    ['refuse', 'begin; insert into t values (1); commit'],
    ['refuse', "insert into t values (';'); commit"],
    ['other', "insert into t values ('; commit')"],
    ['other', 'savepoint a'],
    ['other', 'rollback to savepoint a'],
    ['other', 'ROLLBACK TRANSACTION TO a'],
    ['other', 'release a'],
    ['other', 'do $$ begin perform 1; end $$'],
    ['other', 'do $body$ begin commit; end $body$'],
    ['other', 'prepare statement as select 1'],
    ['other', 'select case when true then 1 end; select "commit" from "end"'],
    ['other', "select E'it\\'s; commit'"],
    ['other', 'select 1 -- ; commit'],
    ['other', 'update transaction set done = true'],
  ])('%s: %s', (command, sql) => {
    expect(transactionCommand(sql)).toBe(command);
  });

  test('quoted text never counts, whatever it holds', () => {
    fc.assert(
      fc.property(fc.string(), fc.constantFrom('; commit', ';rollback;', 'begin', '$$;commit'), (text, poison) => {
        const quoted = `'${`${text}${poison}`.replaceAll("'", "''")}'`;
        expect(transactionCommand(`insert into t values (${quoted})`)).toBe('other');
        expect(transactionCommand(`insert into t values (${quoted}); commit`)).toBe('refuse');
      }),
    );
  });
});

describe('savepoints of the user', () => {
  test.each([
    ['savepoint A', [{ command: 'set', name: 'a' }]],
    ['SAVEPOINT typeorm_1', [{ command: 'set', name: 'typeorm_1' }]],
    ['ROLLBACK TO SAVEPOINT typeorm_1', [{ command: 'rollback', name: 'typeorm_1' }]],
    ['rollback transaction to a;', [{ command: 'rollback', name: 'a' }]],
    ['release a', [{ command: 'release', name: 'a' }]],
    ['RELEASE SAVEPOINT "My ""own"" point"', [{ command: 'release', name: 'My "own" point' }]],
    [
      'savepoint a; insert into t values (1); rollback to a',
      [
        { command: 'set', name: 'a' },
        { command: 'rollback', name: 'a' },
      ],
    ],
    ["insert into t values ('; savepoint a')", []],
    ['select 1', []],
    ['rollback', []],
  ])('%s', (sql, commands) => {
    expect(savepointCommands(sql)).toEqual(commands);
  });
});
