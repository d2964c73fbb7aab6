// Finds what code still says of a switchover, without a compiler: the sources may be of any version of TypeScript or JavaScript.
// Comments, strings and regular expressions are blanked first, so that what is found is code, at its place.
import { blankOut, stringAt } from './blank-code.ts';
import { followNames } from './module-names.ts';
import type { Names, ScannedFile, SourceFile } from './module-names.ts';

/** A place in the code. `possible`: the name as a text, of which it can't be told whether it means the switchover. */
export interface CodePlace {
  readonly path: string;
  readonly line: number;
  readonly kind: 'definition' | 'import' | 'list' | 'reply' | 'use' | 'possible';
  /** The line itself, without its indentation. */
  readonly code: string;
}

/**
 * Everything that has to go with a switchover: its definition, imports of it, lists that pass it (`createTurnout`, the configuration),
 * `.reply(it)`, and other uses; and where its name stands otherwise. Pure.
 */
export function findSwitchover(files: readonly SourceFile[], name: string): CodePlace[] {
  const scanned = files.map((file) => ({ ...file, ...blankOut(file.text) }));
  const definitions = scanned.flatMap((file) => definitionsIn(file, name, scanned));
  const names = new Map(
    scanned.map(({ path }): [string, Names] => [path, { locals: new Set(), exported: new Set(), places: new Set() }]),
  );
  for (const { file, local, exported } of definitions) {
    if (local !== undefined) names.get(file.path)!.locals.add(local);
    if (exported !== undefined) names.get(file.path)!.exported.add(exported);
  }
  followNames(scanned, names);
  const places = new Map<string, CodePlace>();
  const add = (file: SourceFile, index: number, kind: CodePlace['kind']): void => {
    const place = placeAt(file, index, kind);
    const known = places.get(`${place.path}:${place.line}`);
    // One line a place; what says most of it stands.
    if (known === undefined || rank[kind] > rank[known.kind]) places.set(`${place.path}:${place.line}`, place);
  };
  for (const { file, index } of definitions) add(file, index, 'definition');
  for (const file of scanned) {
    const { locals, places: handedOn } = names.get(file.path)!;
    for (const index of handedOn) add(file, index, 'import');
    for (const local of locals) {
      for (const match of file.blank.matchAll(new RegExp(`(?<![\\w$.])${escaped(local)}(?![\\w$])`, 'g')))
        if (!handedOn.has(match.index))
          add(file, match.index + local.lastIndexOf('.') + 1, kindAt(file.blank, match.index));
    }
    for (const index of file.strings)
      if (
        stringAt(file.text, index) === name &&
        !definitions.some((each) => each.file === file && each.nameAt === index)
      )
        add(file, index, 'possible');
  }
  return [...places.values()].sort((a, b) => (a.path === b.path ? a.line - b.line : a.path < b.path ? -1 : 1));
}

const rank: Record<CodePlace['kind'], number> = { possible: 0, use: 1, import: 2, list: 3, reply: 4, definition: 5 };

interface Definition {
  readonly file: ScannedFile;
  readonly index: number;
  /** Where its name stands, if it stands in it. */
  readonly nameAt: number | undefined;
  readonly local: string | undefined;
  readonly exported: string | undefined;
}

function definitionsIn(file: ScannedFile, name: string, files: readonly ScannedFile[]): Definition[] {
  const found: Definition[] = [];
  for (const match of file.blank.matchAll(/(?<![\w$])defineSwitchover\s*(?:<[^(]*>)?\(/g)) {
    const open = file.blank.indexOf('{', match.index + match[0].length - 1);
    const given = open === -1 ? undefined : nameGiven(file, open, files);
    if (given?.value !== name) continue;
    found.push({ file, index: match.index, nameAt: given.at, ...namesOf(file.blank.slice(0, match.index)) });
  }
  return found;
}

/** What a definition is assigned to, by the code before it. */
function namesOf(before: string): Pick<Definition, 'local' | 'exported'> {
  const variable = /(export\s+)?(?:const|let|var)\s+([\w$]+)\s*(?::[^=]*)?=\s*$/.exec(before);
  if (variable !== null) return { local: variable[2], exported: variable[1] === undefined ? undefined : variable[2] };
  const exported = /(?:export\s+default|module\.exports\s*=|exports\.([\w$]+)\s*=)\s*$/.exec(before);
  return { local: undefined, exported: exported === null ? undefined : (exported[1] ?? 'default') };
}

/** The `name` of an object that begins at a place: a text, a constant, or what another object brings along; not that of one within it. */
function nameGiven(
  file: ScannedFile,
  open: number,
  files: readonly ScannedFile[],
  depth = 0,
): { readonly value: string; readonly at?: number } | undefined {
  const own = ownLevel(file.blank, open);
  const last = [...own.matchAll(/(?<![\w$.])name\s*(?::|(?=[,}]))/g)].at(-1);
  if (last !== undefined) {
    const at = behindSpace(file.text, open + last.index + last[0].length);
    if (!last[0].endsWith(':')) return constantText('name', files);
    if (file.strings.includes(at)) return { value: stringAt(file.text, at) ?? '', at };
    return constantText(/^[\w$]+/.exec(file.blank.slice(at, at + 200))?.[0] ?? '', files);
  }
  for (const [, brought] of own.matchAll(/\.\.\.\s*([\w$]+)/g)) {
    const place = declared(brought!, files).find(({ file: there, at }) => there.blank[at] === '{');
    const given = place === undefined || depth > 5 ? undefined : nameGiven(place.file, place.at, files, depth + 1);
    if (given !== undefined) return { value: given.value };
  }
  return undefined;
}

function constantText(identifier: string, files: readonly ScannedFile[]): { readonly value: string } | undefined {
  const place = declared(identifier, files).find(({ file, at }) => file.strings.includes(at));
  const value = place === undefined ? undefined : stringAt(place.file.text, place.at);
  return value === undefined ? undefined : { value };
}

/** Where what is assigned to a variable of that name begins. */
function declared(
  identifier: string,
  files: readonly ScannedFile[],
): { readonly file: ScannedFile; readonly at: number }[] {
  const pattern = new RegExp(`(?:const|let|var)\\s+${escaped(identifier)}\\s*(?::[^=]*)?=`, 'g');
  return files.flatMap((file) =>
    [...file.blank.matchAll(pattern)].map(({ index, 0: all }) => {
      const at = index + all.length;
      return { file, at: behindSpace(file.text, at) };
    }),
  );
}

function behindSpace(text: string, at: number): number {
  while (at < text.length && /\s/.test(text[at]!)) at++;
  return at;
}

/** An object's code with everything blanked that stands in further brackets. */
function ownLevel(blank: string, open: number): string {
  const end = closing(blank, open);
  let depth = 0;
  let own = '';
  for (let index = open; index < end; index++) {
    const char = blank[index]!;
    if (')]}'.includes(char)) depth--;
    own += depth <= 1 && !(depth === 1 && '([{'.includes(char)) ? char : ' ';
    if ('([{'.includes(char)) depth++;
  }
  return own;
}

function kindAt(blank: string, index: number): CodePlace['kind'] {
  const before = blank.slice(Math.max(0, index - 2_000), index);
  if (/\.\s*reply\s*(?:<[^(]*>)?\(\s*$/.test(before)) return 'reply';
  if (/(?:import|export)\s+(?:type\s+)?(?:[\w$]+\s*,\s*)?\{[^}]*$/.test(before)) return 'import';
  const list = before.lastIndexOf('[');
  if (list > before.lastIndexOf(']') && /switchovers\s*:\s*$/.test(before.slice(0, list))) return 'list';
  return 'use';
}

function placeAt({ path, text }: SourceFile, index: number, kind: CodePlace['kind']): CodePlace {
  const start = text.lastIndexOf('\n', index - 1) + 1;
  const end = text.indexOf('\n', index);
  return {
    path,
    line: text.slice(0, index).split('\n').length,
    kind,
    code: text.slice(start, end === -1 ? undefined : end).trim(),
  };
}

/** The index behind the bracket that closes the one at `open`. */
function closing(blank: string, open: number): number {
  let depth = 0;
  for (let index = open; index < blank.length; index++) {
    if ('([{'.includes(blank[index]!)) depth++;
    else if (')]}'.includes(blank[index]!) && --depth === 0) return index + 1;
  }
  return blank.length;
}

function escaped(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
}
