// Places in what is compared: `writes.mail.0.insert.subject` is the subject of the first row written to mail.
//
// A pattern has the same parts; `*` stands for any one of them, `**` for any number. Names with a dot in them are one part
// of a place, and are written in a pattern with `*`, or with the dot as `\.`.

/** The parts of a place; indexes are numbers as text. */
export type Path = readonly string[];

export type Pattern = readonly string[];

/** Reads a pattern such as `writes.mail.*.insert.sent_at` or `**.requestId`. */
export function parsePattern(text: string): Pattern {
  return text.split(/(?<!\\)\./).map((part) => part.replaceAll('\\.', '.'));
}

/** Whether a place is the one that a pattern means. */
export function matches(pattern: Pattern, path: Path, at = 0, from = 0): boolean {
  for (let nth = at; nth < pattern.length; nth++, from++) {
    if (pattern[nth] === '**') {
      for (let skipped = from; skipped <= path.length; skipped++)
        if (matches(pattern, path, nth + 1, skipped)) return true;
      return false;
    }
    if (from >= path.length || (pattern[nth] !== '*' && pattern[nth] !== path[from])) return false;
  }
  return from === path.length;
}

/** A name that code has chosen, such as a column's. What data may have put there (an address, a number, an id) is none. */
const namePattern = /^[A-Za-z_$][A-Za-z_$0-9-]{0,63}$/;

/** Whether a member's name is one that code has chosen and not a value. */
export function isPlainName(name: string): boolean {
  return namePattern.test(name) && (name.match(/\d/g)?.length ?? 0) < 4;
}

/** A place with what may be data taken out: what a fingerprint is made of, and what may be shown. */
export function normalised(path: Path): string {
  return path.map((part) => (part.split('.').every(isPlainName) ? part : '*')).join('.');
}
