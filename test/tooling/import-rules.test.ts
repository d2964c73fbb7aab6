import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { layers } from './import-rules.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** A file, what it says, and the rule that refuses it. */
const refused: readonly (readonly [string, string, string])[] = [
  ['src/errors/bad.ts', `import '../event/index.ts';`, 'turnout(imports)'],
  ['src/event/bad.ts', `import '../database/index.ts';`, 'turnout(imports)'],
  ['src/database/bad.ts', `import '../lifecycle/index.ts';`, 'turnout(imports)'],
  ['src/lifecycle/bad.ts', `import '../database/index.ts';`, 'turnout(imports)'],
  ['src/outbox/bad.ts', `import '../inbox/index.ts';`, 'turnout(imports)'],
  ['src/outbox/bad-relay.ts', `import '../relay/index.ts';`, 'turnout(imports)'],
  ['src/inbox/bad.ts', `import '../outbox/index.ts';`, 'turnout(imports)'],
  ['src/relay/bad.ts', `import '../inbox/index.ts';`, 'turnout(imports)'],
  ['src/consumer/bad.ts', `import '../outbox/index.ts';`, 'turnout(imports)'],
  ['src/switchover/bad.ts', `import '../relay/index.ts';`, 'turnout(imports)'],
  ['src/testing/bad.ts', `import '../switchover/index.ts';`, 'turnout(imports)'],
  ['src/relay/bad-cli.ts', `import '../cli/index.ts';`, 'turnout(imports)'],
  ['src/bad-cli.ts', `import './cli/index.ts';`, 'turnout(imports)'],
  ['src/relay/bad-root.ts', `import '../index.ts';`, 'turnout(imports)'],
  ['src/unheard-of/bad.ts', `import '../errors/index.ts';`, 'turnout(imports)'],
  ['src/relay/bad-adapter.ts', `import '../../adapters/pg/index.ts';`, 'turnout(imports)'],
  ['src/relay/bad-outside.ts', `import '../../test/support/index.ts';`, 'turnout(imports)'],
  ['src/relay/bad-self.ts', `import 'turnout/pg';`, 'turnout(imports)'],
  ...['pg', 'typeorm', 'kafkajs', 'express', 'bullmq', 'ioredis', 'zod', '@platformatic/kafka'].map(
    (name) => [`src/relay/bad-${name.replaceAll(/\W/g, '')}.ts`, `import '${name}';`, 'turnout(imports)'] as const,
  ),
  ['adapters/pg/bad.ts', `import 'typeorm';`, 'turnout(imports)'],
  ['adapters/pg/bad-other.ts', `import '../typeorm/index.ts';`, 'turnout(imports)'],
  ['adapters/pg/bad-cli.ts', `import '../../src/cli/index.ts';`, 'turnout(imports)'],
  ['adapters/pg/bad-outside.ts', `import '../../test/support/index.ts';`, 'turnout(imports)'],
  // However it is written, and however deep the file lies.
  [
    'src/event/form-type.ts',
    `import type { Relay } from '../relay/index.ts';\nexport type Form = Relay;`,
    'turnout(imports)',
  ],
  ['src/event/form-type-expression.ts', `export type Form = import('../relay/index.ts').Relay;`, 'turnout(imports)'],
  ['src/event/form-export.ts', `export { relay } from '../relay/index.ts';`, 'turnout(imports)'],
  ['src/event/form-export-all.ts', `export * from '../relay/index.ts';`, 'turnout(imports)'],
  [
    'src/event/form-dynamic.ts',
    `export const form = (): Promise<unknown> => import('../relay/index.ts');`,
    'turnout(imports)',
  ],
  ['src/event/form-detour.ts', `import './../event/../relay/index.ts';`, 'turnout(imports)'],
  ['src/event/deep/er/form.ts', `import '../../../relay/index.ts';`, 'turnout(imports)'],
  ['src/event/form-package-path.ts', `import 'pg/lib/client.js';`, 'turnout(imports)'],
  // Rules of the linter itself, which a slip in the configuration would turn off.
  ['src/event/cycle-a.ts', `import { b } from './cycle-b.ts';\nexport const a = (): unknown => b;`, 'import(no-cycle)'],
  ['src/event/cycle-b.ts', `import { a } from './cycle-a.ts';\nexport const b = (): unknown => a;`, 'import(no-cycle)'],
  ['src/event/default.ts', `export default 1;`, 'import(no-default-export)'],
  ['src/event/some.ts', `export const some: any = 1;`, 'typescript(no-explicit-any)'],
  [
    'src/event/floating.ts',
    `export const float = (work: Promise<void>): void => {\n  work;\n};`,
    'typescript(no-floating-promises)',
  ],
  [
    'src/event/misused.ts',
    `export const misused = (work: () => Promise<void>): void => [1].forEach(work);`,
    'typescript(no-misused-promises)',
  ],
];

const allowed: readonly (readonly [string, string])[] = [
  ['src/outbox/good.ts', `import '../database/index.ts';\nimport '../lifecycle/index.ts';\nimport 'node:crypto';`],
  ['src/relay/good.ts', `import '../outbox/index.ts';`],
  ['src/consumer/good.ts', `import '../inbox/index.ts';`],
  ['src/switchover/good.ts', `import '../consumer/index.ts';\nimport '../outbox/index.ts';`],
  [
    'src/event/deep/er/good.ts',
    `import '../../index.ts';\nimport '../../../errors/index.ts';\nimport type { StandardSchemaV1 } from '@standard-schema/spec';\nexport type Schema = StandardSchemaV1;`,
  ],
  ['src/cli/good.ts', `import 'commander';\nimport '../index.ts';\nimport '../relay/index.ts';`],
  ['src/good.ts', `import './switchover/index.ts';\nimport './relay/index.ts';`],
  ['src/testing/good.ts', `import '../consumer/index.ts';\nimport '../relay/index.ts';`],
  ['adapters/pg/good.ts', `import 'pg';\nimport '../../src/database/index.ts';`],
];

let reported: Map<string, string[]>;
let exitStatus: number;
let copy: string;
afterAll(() => rmSync(copy, { recursive: true, force: true }));

beforeAll(() => {
  copy = mkdtempSync(join(tmpdir(), 'turnout-lint-'));
  for (const path of [
    '.oxlintrc.json',
    'package.json',
    'tsconfig.json',
    'test/tooling/import-rules.mjs',
    'src',
    'adapters',
  ]) {
    cpSync(join(root, path), join(copy, path), { recursive: true });
  }
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
  for (const [file, text] of [...refused, ...allowed]) {
    mkdirSync(dirname(join(copy, file)), { recursive: true });
    writeFileSync(join(copy, file), `${text}\n`);
  }
  ({ reported, exitStatus } = lint());
});

function lint(): { reported: Map<string, string[]>; exitStatus: number } {
  let output: string;
  let status = 0;
  try {
    output = execFileSync(join(root, 'node_modules/.bin/oxlint'), ['-f', 'json', 'src', 'adapters'], {
      cwd: copy,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'pipe'],
    });
  } catch (error) {
    ({ stdout: output, status } = error as { stdout: string; status: number });
  }
  const { diagnostics } = JSON.parse(output) as { diagnostics: { filename: string; code: string }[] };
  const byFile = new Map<string, string[]>();
  for (const { filename, code } of diagnostics) byFile.set(filename, [...(byFile.get(filename) ?? []), code]);
  return { reported: byFile, exitStatus: status };
}

describe('the linter', () => {
  test.each(refused)('refuses %s', (file, _, rule) => {
    expect(reported.get(file) ?? []).toContain(rule);
  });

  test.each(allowed)('allows %s', (file) => {
    expect((reported.get(file) ?? []).filter((rule) => rule === 'turnout(imports)')).toEqual([]);
  });

  test('fails when anything is refused', () => {
    expect(exitStatus).not.toBe(0);
  });

  test('finds no fault with the imports as they are', () => {
    const planted = new Set([...refused, ...allowed].map(([file]) => file));
    const faults = [...reported].filter(
      ([file, rules]) => !planted.has(file) && rules.some((rule) => /turnout|no-cycle/.test(rule)),
    );
    expect(faults).toEqual([]);
  });
});

test('every folder of src has its place in the table', () => {
  const folders = readdirSync(join(root, 'src'), { withFileTypes: true }).filter((entry) => entry.isDirectory());
  const known = [...Object.keys(layers), 'cli', 'dashboard'];
  expect(folders.map(({ name }) => name).filter((name) => !known.includes(name))).toEqual([]);
});

test('the table has no cycle', () => {
  const reaches = (from: string, seen: readonly string[] = []): string[] => {
    if (seen.includes(from)) throw new Error(`A cycle: ${[...seen, from].join(' → ')}`);
    return (layers[from] ?? []).flatMap((next) => [next, ...reaches(next, [...seen, from])]);
  };
  for (const layer of Object.keys(layers)) expect(reaches(layer)).not.toContain(layer);
});

test('the linter runs in `npm test`', () => {
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>;
  };
  expect(scripts['test']).toContain('npm run lint');
  expect(scripts['lint']).toMatch(/oxlint/);
  expect(existsSync(join(root, '.oxlintrc.json'))).toBe(true);
});
