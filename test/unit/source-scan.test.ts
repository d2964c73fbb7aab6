import { describe, expect, test } from 'vitest';
import { blankOut } from '../../src/cli/source-scan/blank-code.ts';
import { findSwitchover } from '../../src/cli/source-scan/source-scan.ts';

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
    expect(blankOut(text).blank).toBe(blanked.padEnd(text.length));
  });

  test('keeps length and lines, whatever it is given', () => {
    for (const text of ['😀 "a" // b', "'unclosed\nb", '`unclosed ${a', '/unclosed', '/* unclosed', definition])
      expect([blankOut(text).blank.length, blankOut(text).blank.split('\n').length]).toEqual([
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

  const plain = `export const confirmation = defineSwitchover({ name: 'order-confirmation' });`;
  test.each([
    [
      'a re-export under another name',
      {
        'a.ts': plain,
        'index.ts': `export { confirmation as mail } from './a.ts';`,
        'c.ts': `import { mail } from '.';\np.reply(mail);`,
      },
      ['a.ts:1 definition', 'c.ts:1 import', 'c.ts:2 reply', 'index.ts:1 import'],
    ],
    [
      'what is handed on with all else, as a name space, and as a package of the same repository',
      {
        'moves/a.ts': plain,
        'moves/index.ts': `export * from './a';`,
        'all.ts': `export * as moves from './moves/index.js';`,
        'c.ts': `import { moves as m } from './all.ts';\np.reply(m.confirmation);`,
        'd.ts': `import { confirmation } from '@shop/moves';\nconsole.log(confirmation);`,
      },
      ['c.ts:1 import', 'c.ts:2 reply', 'd.ts:1 import', 'd.ts:2 use', 'moves/a.ts:1 definition'],
    ],
    [
      'a default export',
      {
        'a.ts': `export default defineSwitchover({ name: 'order-confirmation' });`,
        'b.ts': `import c from './a.ts';\ncreateTurnout({ switchovers: [c] });`,
      },
      ['a.ts:1 definition', 'b.ts:1 import', 'b.ts:2 list'],
    ],
    [
      'a default export of something with a name',
      {
        'a.ts': `const c = defineSwitchover({ name: 'order-confirmation' });\nexport default c;`,
        'b.ts': `import d, { e } from './a.ts';\nd.name;`,
      },
      ['a.ts:1 definition', 'a.ts:2 import', 'b.ts:1 import', 'b.ts:2 use'],
    ],
    [
      'CommonJS',
      {
        'a.cjs': `exports.confirmation = defineSwitchover({ name: 'order-confirmation' });`,
        'b.cjs': `const { confirmation: c } = require('./a.cjs');\np.reply(c);`,
        'c.cjs': `const all = require('./a');\np.reply(all.confirmation);`,
      },
      ['a.cjs:1 definition', 'b.cjs:1 import', 'b.cjs:2 reply', 'c.cjs:2 reply'],
    ],
    [
      'import()',
      { 'a.ts': plain, 'b.ts': `const { confirmation } = await import('./a.ts');\np.reply(confirmation);` },
      ['a.ts:1 definition', 'b.ts:1 import', 'b.ts:2 reply'],
    ],
    [
      'a name from a constant, and from an object that is brought along',
      {
        'a.ts': `const NAME = 'order-confirmation';\nexport const c = defineSwitchover({ consumer: 'email', name: NAME });\np.reply(c);`,
        'b.ts': `const base = { name: 'order-confirmation' } as const;\nconst d = defineSwitchover({ ...base, rpc: [] });`,
      },
      ['a.ts:1 possible', 'a.ts:2 definition', 'a.ts:3 reply', 'b.ts:1 possible', 'b.ts:2 definition'],
    ],
  ])('follows %s', (_what, files, places) => {
    expect(found(files as Record<string, string>)).toEqual(places);
  });

  test('takes another switchover for no definition because the name stands within it; tells where the name stands', () => {
    expect(
      found({
        'a.ts': `export const other = defineSwitchover({ rpc: [on(E, () => call({ name: 'order-confirmation' }))], name: 'other' });`,
        'b.ts': `use(other);\nfetch(\`order-confirmation\`);\n// 'order-confirmation'`,
      }),
    ).toEqual(['a.ts:1 possible', 'b.ts:2 possible']);
  });

  test('does not take for it what has its name and comes from elsewhere', () => {
    expect(
      found({ 'a.ts': plain, 'z.ts': `import { confirmation } from './dialog.ts';\nopen(confirmation);` }),
    ).toEqual(['a.ts:1 definition']);
  });
});
