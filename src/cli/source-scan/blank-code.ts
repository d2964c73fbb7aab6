// Tells code from what is written between it: comments, strings, the fixed parts of templates, regular expressions.

/** A text of which only the code is left. */
export interface Blanked {
  /** Of the same length and with the same lines: everything that is no code is blank. */
  readonly blank: string;
  /** Where strings begin: 'single', "double", and templates. */
  readonly strings: readonly number[];
}

/**
 * The text with everything blanked that is no code: comments, strings, the fixed parts of templates, regular expressions. Lines
 * and places stay where they are.
 */
export function blankOut(text: string): Blanked {
  // By code units, so that places stay where they are.
  const out = Array.from({ length: text.length }, (_, place) => text[place]!);
  const strings: number[] = [];
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
    else if (char === "'" || char === '"') {
      strings.push(at);
      end = stringEnd(text, at, char);
    } else if (char === '/' && beginsRegex(out, at)) end = regexEnd(text, at);
    else if (char === '`' || (char === '}' && templates.at(-1) === 0)) {
      if (char === '}') templates.pop();
      else strings.push(at);
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
  return { blank: out.join(''), strings };
}

/** The string that begins at a place of the text, if it is one without expressions and escapes. */
export function stringAt(text: string, at: number): string | undefined {
  const quote = text[at]!;
  const end = text.indexOf(quote, at + 1);
  const value = end === -1 ? '' : text.slice(at + 1, end);
  return end === -1 || /[\\\n]|\$\{/.test(value) ? undefined : value;
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
