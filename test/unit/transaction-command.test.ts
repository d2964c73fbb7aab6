import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { transactionCommand } from '../../src/database/transaction-command.ts';

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
