import { describe, expect, test } from 'vitest';
import { blankOut, findSwitchover } from '../../src/cli/source-scan.ts';

const found = (files: Record<string, string>, name = 'order-confirmation') =>
  findSwitchover(
    Object.entries(files).map(([path, text]) => ({ path, text })),
    name,
  ).map(({ path, line, kind }) => `${path}:${line} ${kind}`);

const definition = `import { defineSwitchover, on } from 'turnout';
export const confirmation = defineSwitchover({
  // name: 'another'
  consumer: 'email',
  name: 'order-confirmation',
  rpc: [on(OrderPlaced, (event, call) => rpcFetch(call, \`http://\${host}/\${"}"}\`, { json: event.data }))],
});
export const other = defineSwitchover({ name: 'order-points', consumer: 'loyalty' });
`;

describe('blankOut', () => {
  test.each([
    ['a line comment', 'a // b\nc', 'a     \nc'],
    ['a block comment', 'a /* b\n */ c', 'a     \n    c'],
    ['strings with quotes in them', `a('it\\'s', "b")`, 'a(       ,    )'],
    ['a template around code', 'a(`x ${b} y`)', 'a(     b    )'],
    ['templates in templates', 'a(`x${`y${b}`}`)', 'a(        b    )'],
    ['objects in templates', 'a(`${f({ b })}`)', 'a(   f({ b })  )'],
    ['a regular expression', 'a(/[/"]b/g, c)', 'a(       g, c)'],
    ['a division', 'a / b / c', 'a / b / c'],
  ])('%s', (_what, text, blanked) => {
    expect(blankOut(text)).toBe(blanked.padEnd(text.length));
  });

  test('keeps length and lines, whatever it is given', () => {
    for (const text of ['😀 "a" // b', "'unclosed\nb", '`unclosed ${a', '/unclosed', '/* unclosed', definition])
      expect([blankOut(text).length, blankOut(text).split('\n').length]).toEqual([
        text.length,
        text.split('\n').length,
      ]);
  });
});

describe('findSwitchover', () => {
  test('lists the definition, imports, lists, replies and other uses; by whatever name', () => {
    expect(
      found({
        'src/switchovers.ts': definition,
        'src/turnout.ts': `import { confirmation, other } from './switchovers.ts';
export const turnout = createTurnout({ source: 'shop', switchovers: [other, confirmation] });`,
        'src/orders.ts': `import { confirmation as mail } from './switchovers.ts';
const answer = await published.reply(mail);
console.log(mail.name);`,
        'src/all.ts': `import * as moves from './switchovers.ts';
const answer = await published.reply(moves.confirmation, { timeoutMs: 500 });
export { confirmation } from './switchovers.ts';`,
      }),
    ).toEqual([
      'src/all.ts:2 reply',
      'src/all.ts:3 import',
      'src/orders.ts:1 import',
      'src/orders.ts:2 reply',
      'src/orders.ts:3 use',
      'src/switchovers.ts:2 definition',
      'src/turnout.ts:1 import',
      'src/turnout.ts:2 list',
    ]);
  });

  test('counts neither comments nor strings, and no namesakes', () => {
    expect(
      found({
        'src/switchovers.ts': definition,
        'src/notes.ts': `// confirmation goes here
const text = 'published.reply(confirmation)';
const confirmation = 1; // not imported
send({ confirmation });`,
        'src/mails.ts': `import { other } from './switchovers.ts';
mails.confirmation(other);
/* import { confirmation } from './switchovers.ts' */`,
      }),
    ).toEqual(['src/switchovers.ts:2 definition']);
    expect(found({ 'src/switchovers.ts': definition }, 'another')).toEqual([]);
    expect(found({ 'src/switchovers.ts': definition }, 'order-points')).toEqual(['src/switchovers.ts:8 definition']);
  });

  test('finds a definition that has no name of its own', () => {
    expect(found({ 'a.js': `run([defineSwitchover({ "name": 1, name: "order-confirmation" })])` })).toEqual([
      'a.js:1 definition',
    ]);
  });
});
