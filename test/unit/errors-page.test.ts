import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { errorKinds } from '../../src/errors/index.ts';
import type { ErrorKind } from '../../src/errors/index.ts';

interface Row {
  readonly code: string;
  readonly sqlState: string;
  readonly again: string;
  readonly when: string;
  readonly remedy: string;
}

const page = readFileSync(new URL('../../docs/errors.md', import.meta.url), 'utf8');

const rows: Row[] = page
  .split('\n')
  .map((line) => /^\| `(TURNOUT_\w+)` \| (.*?) \| (.*?) \| (.+?) \| (.+) \|$/.exec(line))
  .filter((match) => match !== null)
  .map(([, code = '', sqlState = '', again = '', when = '', remedy = '']) => ({ code, sqlState, again, when, remedy }));

describe('docs/errors.md and the registry of errors', () => {
  it('list the same codes, each once', () => {
    expect(rows.map((row) => row.code).sort()).toEqual(Object.keys(errorKinds).sort());
  });

  it.each(Object.entries<ErrorKind>(errorKinds))('agree on %s', (code, kind) => {
    const row = rows.find((each) => each.code === code);
    expect(row).toMatchObject({
      sqlState: kind.sqlState ?? '',
      again: kind.retryable ? 'yes' : 'no',
      remedy: kind.remedy,
    });
    // Somebody has written when it is raised.
    expect(row?.when).toMatch(/^\S.{10,}\.$/);
  });
});
