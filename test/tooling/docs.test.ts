// The code in README and docs is compiled, the commands in it exist, and the links lead somewhere.
import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, describe, expect, it } from 'vitest';
import { blocksOf, linksOf, programsOf } from './markdown.ts';

const root = fileURLToPath(new URL('../..', import.meta.url));
// Inside the repository, so that packages are found as they are for our own code.
const folder = join(root, '.cache', `docs-${process.pid}`);
const pages = [
  'README.md',
  'examples/orders/README.md',
  'examples/grpc/README.md',
  'examples/nest/README.md',
  'examples/ruby/README.md',
  'examples/wrap-legacy-api/README.md',
  ...markdownIn('docs'),
  'bench/README.md',
].filter((page) => existsSync(join(root, page)));

afterAll(() => rmSync(folder, { recursive: true, force: true }));

function markdownIn(path: string): string[] {
  return readdirSync(join(root, path), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md'))
    .map((name) => join(path, name));
}

const textOf = (page: string): string => readFileSync(join(root, page), 'utf8');

describe('code in README and docs', () => {
  it('compiles against the source', async () => {
    const pageOfFile = new Map<string, string>();
    for (const page of pages) {
      for (const [name, text] of programsOf(blocksOf(textOf(page), 'ts'))) {
        const file = join(folder, page.replaceAll(/[^a-z0-9]+/gi, '-'), name);
        pageOfFile.set(relative(root, file), page);
        mkdirSync(dirname(file), { recursive: true });
        writeFileSync(file, text);
      }
    }
    expect(pageOfFile.size).toBeGreaterThan(5);
    writeFileSync(
      join(folder, 'tsconfig.json'),
      JSON.stringify({
        extends: '../../tsconfig.json',
        // For Nest’s decorators.
        compilerOptions: { noEmit: true, rootDir: '../..', experimentalDecorators: true },
        include: ['.'],
      }),
    );
    const compiler = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
    const { stdout } = await promisify(execFile)(process.execPath, [compiler, '-p', folder, '--pretty', 'false'], {
      cwd: root,
    }).catch((error: unknown) => error as { stdout: string });
    // A block stands in its file on the lines it has in its page.
    const errors = stdout
      .split('\n')
      .filter((line) => line.includes('error TS'))
      .map((line) =>
        line.replace(
          /^([^(]+)\((\d+),\d+\)/,
          (_match, file: string, number: string) => `${pageOfFile.get(file) ?? file}:${number}`,
        ),
      );
    expect(errors).toEqual([]);
  });
});

describe('commands in README and docs', () => {
  const scripts = (JSON.parse(textOf('package.json')) as { scripts: Record<string, string> }).scripts;
  const commands =
    /^\s*(?:npx )?turnout (migrate|topics apply|run|(?:consume|bridge|proxy) \S+|switch (status|(history|check|explain|cleanup) \S+|\S+ (rpc|shadow|ramp|event|done|register))|shadow (report|waive|watch|unwatch) \S+|status|relay rebase)( |$)/;

  it.each(pages)('of %s exist', (page) => {
    for (const { lines, at } of [...blocksOf(textOf(page), 'sh'), ...blocksOf(textOf(page), 'bash')]) {
      for (const [index, line] of lines.entries()) {
        const where = `${page}:${at + index}: ${line}`;
        for (const [, script] of line.matchAll(/npm run ([\w:-]+)/g))
          expect(scripts, where).toHaveProperty([script ?? '']);
        if (/^\s*(?:npx )?turnout /.test(line)) expect(line, where).toMatch(commands);
      }
    }
  });
});

describe('links in README and docs', () => {
  it.each(pages)('of %s lead to a file', (page) => {
    const broken = linksOf(textOf(page)).filter((link) => !existsSync(join(root, dirname(page), link)));
    expect(broken).toEqual([]);
  });

  it('reach every decision and every page', () => {
    const decisions = readdirSync(join(root, 'docs/decisions')).filter((name) => /^\d/.test(name));
    const listed = linksOf(textOf('docs/decisions/README.md')).map((link) => link.replace('./', ''));
    expect(listed.sort()).toEqual(decisions.sort());
    const linked = linksOf(textOf('README.md'));
    for (const name of readdirSync(join(root, 'docs')).filter((each) => each.endsWith('.md')))
      expect(linked).toContain(`docs/${name}`);
  });
});
