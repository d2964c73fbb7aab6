// What users get: the packed tarball, checked by publint and attw, installed and used in an ESM and a CommonJS project.
import { execFile } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { packagesOfAdapter } from './import-rules.mjs';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../..', import.meta.url));
const bin = join(root, 'node_modules/.bin');

interface Manifest {
  readonly version: string;
  readonly exports: Readonly<Record<string, unknown>>;
  readonly devDependencies: Readonly<Record<string, string>>;
  readonly peerDependencies: Readonly<Record<string, string>>;
}
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Manifest;
const entries = Object.keys(manifest.exports)
  .filter((path) => path !== './package.json')
  .map((path) => `turnout${path.slice(1)}`);
/** What works with no third-party library installed: everything but the adapters that import one. */
const bareEntries = entries.filter((entry) => {
  const name = entry.slice('turnout/'.length);
  return (packagesOfAdapter[name] ?? [name]).every((library) => !(library in manifest.peerDependencies));
});

let workspace: string;
let tarball: string;
beforeAll(async () => {
  workspace = mkdtempSync(join(tmpdir(), 'turnout-package-'));
  tarball = await pack();
});
afterAll(() => rmSync(workspace, { recursive: true, force: true }));

async function command(program: string, args: readonly string[], cwd: string): Promise<string> {
  try {
    return (await run(program, args, { cwd, maxBuffer: 64 * 1024 * 1024 })).stdout;
  } catch (error) {
    const { stdout = '', stderr = '' } = error as { stdout?: string; stderr?: string };
    throw new Error(`${program} ${args.join(' ')} failed:\n${stdout}\n${stderr}`, { cause: error });
  }
}

/** Packed in a copy, so that `dist` in the checkout stays as it is. */
async function pack(): Promise<string> {
  const copy = join(workspace, 'checkout');
  mkdirSync(copy);
  for (const path of [
    'package.json',
    'tsconfig.json',
    'src',
    'adapters',
    'migrations',
    'README.md',
    'CHANGELOG.md',
    'LICENSE',
  ]) {
    if (existsSync(join(root, path))) cpSync(join(root, path), join(copy, path), { recursive: true });
  }
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
  await command('npm', ['pack', '--silent', '--pack-destination', workspace], copy);
  return join(workspace, `turnout-${manifest.version}.tgz`);
}

async function project(name: string, type: 'module' | 'commonjs', dependencies: readonly string[]): Promise<string> {
  const directory = join(workspace, name);
  mkdirSync(directory);
  writeFileSync(join(directory, 'package.json'), JSON.stringify({ name, private: true, type }));
  const flags = ['--prefer-offline', '--no-audit', '--no-fund', '--ignore-scripts', '--silent'];
  await command('npm', ['install', ...flags, tarball, ...dependencies], directory);
  return directory;
}

function libraries(names: readonly string[]): string[] {
  return names.map((name) => `${name}@${manifest.devDependencies[name] ?? 'latest'}`);
}

test('the tarball holds what runs and nothing else', async () => {
  const files = (await command('tar', ['-tzf', tarball], workspace)).trim().split('\n');
  const expected =
    /^package\/(package\.json|README\.md|LICENSE|CHANGELOG\.md|migrations\/.+\.sql|dist\/(src|adapters)\/.+\.(js|d\.ts))$/;
  expect(files.filter((file) => !expected.test(file))).toEqual([]);
  expect(files).toContain('package/LICENSE');
  expect(files).toContain('package/dist/src/index.js');
  expect(files).toContain('package/dist/src/cli/main.js');
  expect(files.some((file) => file.endsWith('.sql'))).toBe(true);
});

test('publint finds nothing', async () => {
  await command(join(bin, 'publint'), ['run', tarball, '--strict'], root);
});

test('attw finds every entry resolvable, types included', async () => {
  // ESM only: `require` of it works on every supported Node (20.19 and later), which attw can't know.
  await command(join(bin, 'attw'), [tarball, '--profile', 'esm-only'], root);
});

test('an ESM project without any third-party library uses all but its adapters', async () => {
  const directory = await project('bare', 'module', []);
  writeFileSync(
    join(directory, 'use.js'),
    `${bareEntries.map((entry) => `await import('${entry}');`).join('\n')}
    import { defineEvent } from 'turnout';
    const schema = { '~standard': { version: 1, vendor: 'test', validate: (value) => ({ value }) } };
    const topic = { name: 'orders', partitions: 6, maxBytes: 65536 };
    const placed = defineEvent({ name: 'orders.order-placed', version: 1, schema, topic, key: (order) => order.id });
    console.log(placed.name);
  `,
  );
  expect(await command(process.execPath, ['use.js'], directory)).toBe('orders.order-placed\n');
  expect(await command(join(directory, 'node_modules/.bin/turnout'), ['--help'], directory)).toContain('turnout');
});

test('a CommonJS project requires every entry, and is type-checked against it', async () => {
  const names = Object.keys(manifest.peerDependencies);
  const directory = await project(
    'commonjs',
    'commonjs',
    libraries([...names, '@types/pg', '@types/express', '@types/node', 'zod']),
  );
  writeFileSync(
    join(directory, 'use.js'),
    `
    const loaded = ${JSON.stringify(entries)}.map((entry) => require(entry));
    const { defineEvent } = require('turnout');
    console.log(loaded.every((module) => Object.keys(module).length > 0), typeof defineEvent);
  `,
  );
  expect(await command(process.execPath, ['use.js'], directory)).toBe('true function\n');

  const usage = `
    import { defineEvent, on } from 'turnout';
    import { z } from 'zod';
    ${entries.map((entry, index) => `import * as entry${index} from '${entry}';\nvoid entry${index};`).join('\n')}
    const topic = { name: 'orders', partitions: 6, maxBytes: 65536 };
    const schema = z.object({ id: z.string(), total: z.number() });
    const OrderPlaced = defineEvent({ name: 'orders.order-placed', version: 1, schema, topic, key: (order) => order.id });
    on(OrderPlaced, async (event) => {
      const total: number = event.data.total;
      // @ts-expect-error it is a number
      const wrong: string = event.data.total;
      void [total, wrong];
    });
  `;
  writeFileSync(join(directory, 'use.mts'), usage);
  writeFileSync(join(directory, 'use.cts'), usage);
  const flags = [
    '--noEmit',
    '--strict',
    '--module',
    'nodenext',
    '--target',
    'es2023',
    '--types',
    'node',
    '--skipLibCheck',
    'false',
  ];
  await command(join(bin, 'tsc'), [...flags, 'use.mts'], directory);
  await command(join(bin, 'tsc'), [...flags, 'use.cts'], directory);
});

test.each(['module', 'commonjs'] as const)(
  'the command line reads TypeScript in a project of type %s',
  async (type) => {
    const directory = await project(`configured-${type}`, type, []);
    // An enum and an import without extension: more than type stripping can do.
    writeFileSync(
      join(directory, 'names.ts'),
      `enum Name { Shop = 'shop' }\nexport const source: string = Name.Shop;\n`,
    );
    writeFileSync(
      join(directory, 'turnout.config.ts'),
      `
    import { TurnoutError, defineConfig } from 'turnout';
    import { source } from './names';
    const nowhere = () => { throw new TurnoutError('TURNOUT_DATABASE_UNREACHABLE', 'There is no database.'); };
    export default defineConfig({
      source,
      events: [],
      database: { connect: nowhere, query: nowhere, transaction: nowhere, within: nowhere, whenEnded: () => false, maxConnections: 1 },
    });
  `,
    );
    const turnout = join(directory, 'node_modules/.bin/turnout');
    const failed = await run(turnout, ['status', '--json'], { cwd: directory }).catch(
      (error: unknown) => error as { stdout: string; code: number },
    );
    expect(failed).toMatchObject({ code: 1 });
    expect(JSON.parse(failed.stdout)).toMatchObject({ ok: false, error: { code: 'TURNOUT_DATABASE_UNREACHABLE' } });
    expect(await command(turnout, ['migrate', '--print', '--set', 'producer'], directory)).toContain(
      'create table turnout.outbox',
    );

    // Two instances of the package would share neither AsyncLocalStorage nor instanceof.
    writeFileSync(
      join(directory, 'same.mjs'),
      `
    import { TurnoutError } from 'turnout';
    import { loadConfig } from './node_modules/turnout/dist/src/cli/load-config.js';
    const config = await loadConfig(process.cwd(), undefined);
    try { config.database.query(); } catch (error) { console.log(error instanceof TurnoutError); }
  `,
    );
    // Promised for ES modules; a CommonJS project names its file turnout.config.mts for it.
    if (type === 'module') expect(await command(process.execPath, ['same.mjs'], directory)).toBe('true\n');
  },
);
