import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { differences, groupOf, settled } from '../../src/switchover/shadow/difference.ts';
import { judge } from '../../src/switchover/shadow/judge.ts';
import { masked, maskKey } from '../../src/switchover/shadow/mask.ts';
import { isPlainName, matches, normalised, parsePattern } from '../../src/switchover/shadow/paths.ts';
import { netWrites, readCaptured } from '../../src/switchover/shadow/writes.ts';
import type { WatchedTable } from '../../src/switchover/shadow/writes.ts';

const nothing = { ignore: [], normalise: [] };
const mask = { show: [], key: maskKey() };
const json = fc.jsonValue({ maxDepth: 3 });

describe('a pattern', () => {
  test.each([
    ['writes.mail.*.insert.subject', ['writes', 'mail', '0', 'insert', 'subject'], true],
    ['writes.mail.*.insert.subject', ['writes', 'mail', '0', 'insert', 'body'], false],
    ['**.subject', ['writes', 'mail', '0', 'insert', 'subject'], true],
    ['**.subject', ['subject'], true],
    ['**', [], true],
    ['**', ['a', 'b'], true],
    ['a.**.z', ['a', 'z'], true],
    ['a.**.z', ['a', 'b', 'c', 'z'], true],
    ['a.**.z', ['a', 'b'], false],
    ['*', ['a', 'b'], false],
    ['a\\.b.c', ['a.b', 'c'], true],
  ])('%s against %j: %s', (pattern, path, expected) => {
    expect(matches(parsePattern(pattern), path)).toBe(expected);
  });

  test('of the place itself matches it, whatever it is', () => {
    fc.assert(
      fc.property(fc.array(fc.stringMatching(/^[a-z0-9]{1,5}$/), { minLength: 1, maxLength: 6 }), (path) => {
        expect(matches(parsePattern(path.join('.')), path)).toBe(true);
        expect(matches(parsePattern(['**', path.at(-1)!].join('.')), path)).toBe(true);
      }),
    );
  });
});

describe('differences', () => {
  test('of a value and itself are none, and matching is the same both ways', () => {
    fc.assert(
      fc.property(json, json, (one, other) => {
        const [own, others] = [settled(one, nothing), settled(other, nothing)];
        expect(differences(own, settled(structuredClone(one), nothing))).toEqual([]);
        expect(differences(own, others).length === 0).toBe(differences(others, own).length === 0);
        expect(differences(own, others).length === 0).toBe(JSON.stringify(own) === JSON.stringify(others));
      }),
    );
  });

  test('don’t see the order in which rows were written, and see everything else', () => {
    fc.assert(
      fc.property(fc.array(json, { maxLength: 5 }), fc.nat(), json, (rows, nth, more) => {
        const turned = rows.map((_, index) => rows[(index + nth) % rows.length]);
        const of = (list: unknown[]) => settled({ writes: { mail: list } }, nothing);
        expect(differences(of(rows), of(turned))).toEqual([]);
        expect(differences(of(rows), of([...turned, more]))).not.toEqual([]);
      }),
    );
  });

  test('leave out what is ignored, and see what is normalised as alike', () => {
    const alike = {
      ignore: [parsePattern('**.requestId')],
      normalise: [[parsePattern('answer.total'), (value: unknown) => Math.round(value as number)] as const],
    };
    const of = (value: unknown) => settled(value, alike);
    expect(
      differences(
        of({ answer: { total: 1.1, requestId: 'a' } }),
        of({ answer: { total: 1.2, requestId: 'b', extra: undefined } }),
      ),
    ).toEqual([]);
    expect(differences(of({ answer: { total: 1 } }), of({ answer: { total: 2 } }))).toEqual([
      { path: ['answer', 'total'], what: 'other value' },
    ]);
  });
});

describe('a fingerprint', () => {
  const groupFor = (one: unknown, other: unknown) =>
    groupOf(differences(settled(one, nothing), settled(other, nothing)));
  const mail = (subject: string, count = 1) => ({
    writes: { mail: Array.from({ length: count }, () => ({ insert: { subject } })) },
  });

  test('is the same for the same places, whatever the values and however many', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.string(), { minLength: 4, maxLength: 4 }),
        fc.integer({ min: 1, max: 4 }),
        ([a, b, c, d], count) => {
          expect(groupFor(mail(a!, count), mail(b!, count))).toEqual(groupFor(mail(c!), mail(d!)));
        },
      ),
    );
  });

  test('is another for another place, another kind of difference and another part', () => {
    const groups = [
      groupFor(mail('a'), mail('b')),
      groupFor(mail('a'), { writes: { mail: [{ insert: { body: 'a' } }] } }),
      groupFor(mail('a'), { writes: {} }),
      groupFor({ answer: 'a' }, { answer: 'b' }),
      groupFor({ answer: 'a' }, { answer: 1 }),
    ];
    expect(new Set(groups.map((group) => group?.fingerprint)).size).toBe(groups.length);
  });

  test('holds no data: names that are values stand as *', () => {
    const group = groupFor(
      { answer: { 'a@example.org': 1, '4711': 1 } },
      { answer: { 'b@example.org': 1, '4712': 1 } },
    );
    expect(group?.paths).toEqual(['answer.*: missing', 'answer.*: unexpected']);
    expect(isPlainName('sent_at')).toBe(true);
    expect(isPlainName('7d9f2a01-0000-4000-8000-000000000000')).toBe(false);
    expect(normalised(['writes', 'shop.mail', '0'])).toBe('writes.shop.mail.*');
  });
});

describe('masking', () => {
  test('keeps no string and no number, and tells equal from unequal', () => {
    fc.assert(
      fc.property(
        fc.string({ minLength: 3 }),
        fc.string({ minLength: 3 }),
        fc.integer({ min: 10_000 }),
        (one, other, number) => {
          const text = JSON.stringify(masked({ name: one, list: [other, number], [`${one}@`]: true }, mask));
          for (const secret of [one, other])
            if (!'<string name number list true>'.includes(secret))
              expect(text.replaceAll(/[0-9a-f]{8}>/g, '>')).not.toContain(JSON.stringify(secret).slice(1, -1));
          expect(text).not.toContain(String(number));
          expect(masked(one, mask) === masked(other, mask)).toBe(one === other);
        },
      ),
    );
  });

  test('keeps shape, booleans, null and what is to be shown', () => {
    const show = [parsePattern('writes.mail.*.insert.template')];
    expect(
      masked(
        { writes: { mail: [{ insert: { template: 'welcome', ok: true, none: null, to: 'a@b.c' } }] } },
        { ...mask, show },
      ),
    ).toEqual({
      writes: {
        mail: [
          {
            insert: {
              template: 'welcome',
              ok: true,
              none: null,
              to: expect.stringMatching(/^<string 5 [0-9a-f]{8}>$/),
            },
          },
        ],
      },
    });
  });

  test('is another one in another process', () => {
    expect(masked('secret', mask)).not.toBe(masked('secret', { show: [], key: maskKey() }));
  });
});

describe('what was written', () => {
  const tables: WatchedTable[] = [
    { name: 'mail', keyColumns: ['id'], generatedColumns: ['id', 'at'], referringColumns: [] },
    {
      name: 'line',
      keyColumns: ['mail_id', 'nth'],
      generatedColumns: [],
      referringColumns: [{ column: 'mail_id', table: 'mail', refers: 'id' }],
    },
    { name: 'log', keyColumns: [], generatedColumns: [], referringColumns: [] },
  ];
  const line = (table: string, op: string, old: object | null, now: object | null) =>
    `${JSON.stringify({ table, op, old, new: now })}\n`;
  const net = (...lines: string[]) => netWrites(readCaptured(lines.join(''))!, tables);

  test('is the net change of each row', () => {
    const [one, two] = [
      { id: 1, at: 'x', s: 'a', n: 1 },
      { id: 1, at: 'x', s: 'b', n: 1 },
    ];
    expect(net(line('mail', 'insert', null, one), line('mail', 'update', one, two))).toEqual({
      mail: [{ insert: { s: 'b', n: 1 } }],
    });
    expect(net(line('mail', 'update', one, two))).toEqual({ mail: [{ update: { s: 'b' }, where: { id: 1 } }] });
    expect(net(line('mail', 'update', one, two), line('mail', 'update', two, one))).toEqual({});
    expect(net(line('mail', 'insert', null, one), line('mail', 'delete', one, null))).toEqual({});
    expect(net(line('mail', 'update', one, two), line('mail', 'delete', two, null))).toEqual({
      mail: [{ delete: { id: 1 } }],
    });
    expect(net(line('log', 'delete', { what: 'x' }, null))).toEqual({ log: [{ delete: { what: 'x' } }] });
    expect(net(line('mail', 'truncate', null, null))).toEqual({ mail: [{ truncate: true }] });
  });

  test('is the same for values that the database makes up, where they come back too', () => {
    const side = (id: number) =>
      net(
        line('mail', 'insert', null, { id, at: `${id}`, s: 'a' }),
        line('line', 'insert', null, { mail_id: id, nth: 1 }),
      );
    expect(side(5)).toEqual(side(6));
    expect(side(5)['line']).toEqual([{ insert: { mail_id: '<mail.id 1>', nth: 1 } }]);
  });

  test('can’t be compared if it was too large', () => {
    expect(readCaptured('too large')).toBeUndefined();
  });
});

describe('the judgement', () => {
  const judged = (expected: object, actual: object) => judge(expected, actual, nothing, mask);

  test('compares only what both sides have', () => {
    expect(judged({ answer: 1, writes: {} }, { writes: {} })).toEqual({ kind: 'matched' });
    expect(judged({ answer: 1, writes: {} }, { answer: 2, writes: {} })).toMatchObject({ group: { kind: 'answer' } });
    expect(judged({ effects: [1, 2] }, { effects: [2, 1] })).toEqual({ kind: 'matched' });
  });

  test('takes one failure for a mismatch, and two for none', () => {
    const error = { name: 'Error', code: null, message: 'no mail for a@example.org' };
    const mismatch = judged({ writes: {} }, { error });
    expect(mismatch).toMatchObject({ kind: 'mismatched', group: { kind: 'error', paths: ['error: unexpected'] } });
    expect(JSON.stringify(mismatch)).not.toContain('example.org');
    expect(judged({ error }, { writes: {} })).toMatchObject({ group: { paths: ['error: missing'] } });
    expect(judged({ error }, { error })).toEqual({ kind: 'matched' });
  });

  test('keeps a bounded example of large sides', () => {
    const big = (text: string) => ({
      writes: { mail: Array.from({ length: 2_000 }, (_, n) => ({ insert: { n, text } })) },
    });
    const mismatch = judged(big('a'), big('b'));
    expect(mismatch).toMatchObject({ kind: 'mismatched', group: { kind: 'writes' } });
    expect(JSON.stringify(mismatch).length).toBeLessThan(20_000);
  });
});
