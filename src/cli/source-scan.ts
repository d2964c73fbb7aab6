// Finds what code still says of a switchover, without a compiler: the sources may be of any version of TypeScript or JavaScript.
// Comments, strings and regular expressions are blanked first, so that what is found is code, at its place.

/** A source file, as it was read. */
export interface SourceFile {
  readonly path: string;
  readonly text: string;
}

/** A place in the code. */
export interface CodePlace {
  readonly path: string;
  readonly line: number;
  readonly kind: 'definition' | 'import' | 'list' | 'reply' | 'use';
  /** The line itself, without its indentation. */
  readonly code: string;
}

/**
 * Everything that has to go with a switchover: its definition, imports of it, lists that pass it (`createTurnout`, the configuration),
 * `.reply(it)`, and other uses. Pure.
 */
export function findSwitchover(files: readonly SourceFile[], name: string): CodePlace[] {
  const scanned = files.map((file) => ({ ...file, blank: blankOut(file.text) }));
  const definitions = scanned.flatMap((file) => definitionsIn(file, name).map((found) => ({ ...found, file })));
  const identifiers = new Set(definitions.flatMap(({ identifier }) => identifier ?? []));
  const places = new Map<string, CodePlace>();
  const add = (file: Scanned, index: number, kind: CodePlace['kind']): void => {
    const place = placeAt(file, index, kind);
    const known = places.get(`${place.path}:${place.line}`);
    // One line a place; what says most of it stands.
    if (known === undefined || rank[kind] > rank[known.kind]) places.set(`${place.path}:${place.line}`, place);
  };
  for (const { file, index } of definitions) add(file, index, 'definition');
  for (const file of scanned) {
    for (const identifier of identifiers) {
      const isHome = definitions.some((each) => each.file === file && each.identifier === identifier);
      for (const local of isHome ? [identifier] : localNames(file.blank, identifier)) {
        for (const match of file.blank.matchAll(new RegExp(`(?<![\\w$.])${escaped(local)}(?![\\w$])`, 'g')))
          add(file, match.index + (local.length - identifierOf(local).length), kindAt(file.blank, match.index));
      }
    }
  }
  return [...places.values()].sort((a, b) => (a.path === b.path ? a.line - b.line : a.path < b.path ? -1 : 1));
}

const rank: Record<CodePlace['kind'], number> = { use: 0, import: 1, list: 2, reply: 3, definition: 4 };

interface Scanned extends SourceFile {
  readonly blank: string;
}

function definitionsIn({ text, blank }: Scanned, name: string): { index: number; identifier: string | undefined }[] {
  const found: { index: number; identifier: string | undefined }[] = [];
  for (const match of blank.matchAll(/(?<![\w$])defineSwitchover\s*(?:<[^(]*>)?\(/g)) {
    const end = closing(blank, match.index + match[0].length - 1);
    if (!hasName(text.slice(match.index, end), blank.slice(match.index, end), name)) continue;
    const before = /(?:const|let|var)\s+([\w$]+)\s*(?::[^=]*)?=\s*$/.exec(blank.slice(0, match.index));
    found.push({ index: match.index, identifier: before?.[1] });
  }
  return found;
}

/** Whether `name: '…'` is that name: found in the blanked code, read in the text. */
function hasName(text: string, blank: string, name: string): boolean {
  return [...blank.matchAll(/(?<![\w$.])name\s*:/g)].some((match) => {
    const value = text.slice(match.index + match[0].length).trimStart();
    return [`'${name}'`, `"${name}"`, `\`${name}\``].some((quoted) => value.startsWith(quoted));
  });
}

/** What a file calls something that another file exports; none if it does not import it. */
function localNames(blank: string, identifier: string): string[] {
  const names = new Set<string>();
  for (const [, list = ''] of blank.matchAll(/(?:import|export)\s+(?:type\s+)?(?:[\w$]+\s*,\s*)?\{([^}]*)\}/g)) {
    for (const entry of list.split(',')) {
      const match = /^\s*(?:type\s+)?([\w$]+)(?:\s+as\s+([\w$]+))?\s*$/.exec(entry);
      if (match?.[1] !== identifier) continue;
      names.add(identifier);
      names.add(match[2] ?? identifier);
    }
  }
  for (const [, space = ''] of blank.matchAll(/import\s+\*\s+as\s+([\w$]+)/g))
    if (new RegExp(`(?<![\\w$.])${escaped(space)}\\.${escaped(identifier)}(?![\\w$])`).test(blank))
      names.add(`${space}.${identifier}`);
  return [...names];
}

const identifierOf = (local: string): string => local.slice(local.lastIndexOf('.') + 1);

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

/**
 * The text with everything blanked that is no code: comments, strings, the fixed parts of templates, regular expressions. Lines
 * and places stay where they are.
 */
export function blankOut(text: string): string {
  // By code units, so that places stay where they are.
  const out = Array.from({ length: text.length }, (_, place) => text[place]!);
  const blank = (from: number, to: number): void => {
    for (let at = from; at < to && at < out.length; at++) if (out[at] !== '\n') out[at] = ' ';
  };
  // Of each template that is open, how many braces are open in its expression.
  const templates: number[] = [];
  let at = 0;
  while (at < text.length) {
    const two = text.slice(at, at + 2);
    const char = text[at]!;
    let end: number | undefined;
    if (two === '//') end = indexOr(text, '\n', at);
    else if (two === '/*') end = indexOr(text, '*/', at + 2) + 2;
    else if (char === "'" || char === '"') end = stringEnd(text, at, char);
    else if (char === '/' && beginsRegex(out, at)) end = regexEnd(text, at);
    else if (char === '`' || (char === '}' && templates.at(-1) === 0)) {
      if (char === '}') templates.pop();
      end = at + 1;
      while (end < text.length && text[end] !== '`' && text.slice(end, end + 2) !== '${')
        end += text[end] === '\\' ? 2 : 1;
      if (text[end] === '`') end += 1;
      else if (end < text.length) {
        templates.push(0);
        end += 2;
      }
    } else if (templates.length > 0 && (char === '{' || char === '}')) {
      templates[templates.length - 1]! += char === '{' ? 1 : -1;
    }
    if (end === undefined) at += 1;
    else {
      blank(at, end);
      at = end;
    }
  }
  return out.join('');
}

function indexOr(text: string, what: string, from: number): number {
  const found = text.indexOf(what, from);
  return found === -1 ? text.length : found;
}

function stringEnd(text: string, from: number, quote: string): number {
  let at = from + 1;
  while (at < text.length && text[at] !== quote && text[at] !== '\n') at += text[at] === '\\' ? 2 : 1;
  return at + 1;
}

/** A slash begins a regular expression where a value may begin; behind a name, a number or a closing bracket it divides. */
function beginsRegex(out: readonly string[], at: number): boolean {
  let before = at - 1;
  while (before >= 0 && (out[before] === ' ' || out[before] === '\t' || out[before] === '\n')) before--;
  if (before < 0) return true;
  if (/[\w$)\]}]/.test(out[before]!)) {
    const word = /([\w$]+)$/.exec(out.slice(Math.max(0, before - 10), before + 1).join(''))?.[1] ?? '';
    return ['return', 'typeof', 'case', 'in', 'of', 'await', 'yield'].includes(word);
  }
  return true;
}

function regexEnd(text: string, from: number): number {
  let inClass = false;
  for (let at = from + 1; at < text.length; at++) {
    const char = text[at];
    if (char === '\n') return from + 1;
    if (char === '\\') at++;
    else if (char === '[') inClass = true;
    else if (char === ']') inClass = false;
    else if (char === '/' && !inClass) return at + 1;
  }
  return from + 1;
}
