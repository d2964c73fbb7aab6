// Under which names a thing goes in which file: as modules import it, hand it on, and rename it. ES modules and CommonJS, read
// by their words: what is imported by an expression is not followed.
import { posix } from 'node:path';
import { stringAt } from './blank-code.ts';
import type { Blanked } from './blank-code.ts';

/** A source file, as it was read. */
export interface SourceFile {
  readonly path: string;
  readonly text: string;
}

export interface ScannedFile extends SourceFile, Blanked {}

/** What a file calls a thing, and what it hands it on as. With a dot for a member of a name space; `default` for the default export. */
export interface Names {
  readonly locals: Set<string>;
  readonly exported: Set<string>;
  /** Where it is imported or handed on. */
  readonly places: Set<number>;
}

/** One name that goes from one module to another, or out of one. */
interface Link {
  /** Undefined: of this file. */
  readonly from: string | undefined;
  readonly theirs: string;
  /** Undefined: all of them, under their names. */
  readonly mine: string | undefined;
  readonly isExport: boolean;
  /** Undefined where all are taken at once. */
  readonly place: number | undefined;
}

/** Follows names through imports and exports; `names` begins with those of the definitions, and is filled. */
export function followNames(files: readonly ScannedFile[], names: ReadonlyMap<string, Names>): void {
  const links = files.map((file) => ({ file, links: linksOf(file), mine: names.get(file.path)! }));
  const modules = new Map(files.map(({ path }) => [moduleName(path), names.get(path)!]));
  const size = (): number =>
    [...names.values()].reduce((sum, each) => sum + each.locals.size + each.exported.size + each.places.size, 0);
  let before;
  do {
    before = size();
    for (const { file, links: all, mine } of links) {
      for (const link of all) {
        for (const name of offered(link, file, mine, modules)) {
          const renamed = rename(name, link);
          if (renamed === undefined) continue;
          (link.isExport ? mine.exported : mine.locals).add(renamed);
          if (link.place !== undefined) mine.places.add(link.place);
        }
      }
    }
  } while (size() > before);
}

/** What the module behind a link exports. One that is named as a package may be any of these files. */
function offered(
  { from }: Link,
  file: ScannedFile,
  mine: Names,
  modules: ReadonlyMap<string, Names>,
): readonly string[] {
  if (from === undefined) return [...mine.locals];
  if (from.startsWith('.')) {
    const path = posix.join(posix.dirname(file.path.replaceAll('\\', '/')), from);
    return [...(modules.get(moduleName(path))?.exported ?? [])];
  }
  return [...modules.values()].flatMap(({ exported }) => [...exported]).filter((name) => name !== 'default');
}

function rename(name: string, { theirs, mine }: Link): string | undefined {
  if (theirs === '*') return mine === undefined ? (name === 'default' ? undefined : name) : `${mine}.${name}`;
  if (name === theirs) return mine;
  return name.startsWith(`${theirs}.`) ? `${mine}${name.slice(theirs.length)}` : undefined;
}

function moduleName(path: string): string {
  return posix
    .normalize(path.replaceAll('\\', '/'))
    .replace(/^\.?\/|^\.$|\/$/g, '')
    .replace(/\.[mc]?[jt]sx?$/, '')
    .replace(/(?:^|\/)index$/, '');
}

function linksOf(file: ScannedFile): Link[] {
  const { blank } = file;
  return [
    ...[...blank.matchAll(fromClause)].flatMap((match) =>
      clauseLinks(match[2]!, match.index + match[0].indexOf(match[2]!), {
        from: specifier(file, match.index + match[0].length),
        isExport: match[1] === 'export',
      }),
    ),
    ...[...blank.matchAll(ownExports)].flatMap((match) =>
      listLinks(match[1]!, match.index + match[0].indexOf('{') + 1, { from: undefined, isExport: true }, / as /),
    ),
    ...[...blank.matchAll(ownDefault)].map((match): Link => {
      const place = match.index + match[0].lastIndexOf(match[2]!);
      return { from: undefined, theirs: match[2]!, mine: match[1] ?? 'default', isExport: true, place };
    }),
    ...[...blank.matchAll(required)].flatMap((match) => {
      const [all, what = ''] = match;
      const given = { from: specifier(file, match.index + all.length), isExport: false };
      const place = match.index + all.indexOf(what);
      if (what.startsWith('{')) return listLinks(what.slice(1, -1), place + 1, given, /:/);
      return [
        { ...given, theirs: '*', mine: what, place: undefined },
        { ...given, theirs: 'default', mine: what, place },
      ];
    }),
  ];
}

/** `import … from`, `export … from`. */
const fromClause =
  /(?<![\w$.])(import|export)\s+(?:type\s+)?((?:[\w$]+|\{[^}]*\}|\*(?:\s*as\s+[\w$]+)?|\s*,\s*)+?)\s*from(?=\s)/g;
const ownExports = /(?<![\w$.])export\s+(?:type\s+)?\{([^}]*)\}(?!\s*from)/g;
const ownDefault =
  /(?<![\w$.])(?:export\s+default\s+|module\.exports\s*=\s*|(?:module\.)?exports\.([\w$]+)\s*=\s*)([\w$]+)\s*(?=[;\n]|$)/g;
/** `const { a: b } = require(…)`, `const a = await import(…)`. */
const required = /(?<![\w$.])(?:const|let|var)\s+(\{[^}=]*\}|[\w$]+)\s*=\s*(?:await\s+)?(?:require|import)\s*\(/g;

type Given = Pick<Link, 'from' | 'isExport'>;

function clauseLinks(clause: string, at: number, given: Given): Link[] {
  const list = /\{([^}]*)\}/.exec(clause);
  const links = list === null ? [] : listLinks(list[1]!, at + list.index + 1, given, / as /);
  const space = /\*(?:\s*as\s+([\w$]+))?/.exec(clause);
  if (space !== null) links.push({ ...given, theirs: '*', mine: space[1], place: undefined });
  const standard = /^[\w$]+/.exec(clause)?.[0];
  if (standard !== undefined) links.push({ ...given, theirs: 'default', mine: standard, place: at });
  return links;
}

/** `a, b as c`, or `a, b: c`. */
function listLinks(list: string, at: number, given: Given, separator: RegExp): Link[] {
  const links: Link[] = [];
  let place = at;
  for (const entry of list.split(',')) {
    const [theirs = '', mine = theirs] = entry
      .replace(/^\s*type\s+(?=[\w$])/, '')
      .replaceAll(/\s+/g, ' ')
      .split(separator)
      .map((name) => name.trim());
    const start = place + entry.length - entry.trimStart().length;
    if (theirs !== '') links.push({ ...given, theirs, mine, place: start });
    place += entry.length + 1;
  }
  return links;
}

/** The module that is named at a place, behind blanks. */
function specifier({ text }: ScannedFile, at: number): string {
  const start = at + /^\s*/.exec(text.slice(at, at + 1_000))![0].length;
  return stringAt(text, start) ?? '';
}
