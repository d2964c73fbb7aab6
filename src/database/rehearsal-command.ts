/**
 * Why a statement can't be part of a rehearsal, which is taken back with a savepoint: what it does would stay (a lock of
 * the session, a prepared statement), it would lift the bounds on its time, or it would end the savepoint itself.
 * Undefined for every other statement. A text is all there is to see here: what a function of the user's own does inside is not.
 */
export function refusedInRehearsal(sql: string): string | undefined {
  if (!suspicious.test(sql)) return undefined;
  const text = plain(sql);
  if (/\bpg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?\s*\(/i.test(text))
    return 'A lock of the session can’t be taken in a rehearsal: it would outlive it.';
  if (
    /\b(?:statement|lock|transaction|idle_in_transaction_session)_timeout\b/i.test(text) ||
    /\bset_config\s*\((?!\s*'[^']*'\s*,)/i.test(text)
  )
    return 'The time-outs of a rehearsal can’t be changed in it, nor a setting whose name is made up.';
  if (/(?:^|;)\s*(?:prepare|deallocate|listen|unlisten|discard|reset|load|checkpoint)\b/i.test(plain(sql, () => "''")))
    return `${JSON.stringify(sql.slice(0, 80))} would outlive a rehearsal.`;
  // Turnout's own savepoints are numbered: they are not the handler's to end.
  if (/\b(?:to|release)(?:\s+savepoint)?\s+turnout_/i.test(text))
    return 'The savepoint of a rehearsal is not ended by what runs in it.';
  return undefined;
}

const suspicious = /advisory|timeout|set_config|prepare|deallocate|listen|discard|reset|load|checkpoint|turnout|\bu&/i;

/** Tokens that hide what others look like: comments, names in quotes, strings. Comments may be nested. */
const token = /--[^\n]*|\/\*|\b[uU]&"((?:[^"]|"")*)"|"((?:[^"]|"")*)"|\b[eE]'(?:[^'\\]|\\[\s\S]|'')*'|'(?:[^']|'')*'/g;

/** The text without comments, with names as they are without their quotes, and strings as they are or as `string` has them. */
function plain(sql: string, string = (text: string): string => text): string {
  let text = '';
  let from = 0;
  token.lastIndex = 0;
  for (let match = token.exec(sql); match !== null; match = token.exec(sql)) {
    const [found, escaped, quoted] = match;
    text += sql.slice(from, match.index);
    if (found === '/*') token.lastIndex = endOfComment(sql, match.index);
    if (found.startsWith('--') || found === '/*') text += ' ';
    else if (escaped !== undefined) text += unescaped(escaped);
    else text += quoted ?? string(found);
    from = token.lastIndex;
  }
  return text + sql.slice(from);
}

function endOfComment(sql: string, start: number): number {
  const mark = /\/\*|\*\//g;
  mark.lastIndex = start;
  let depth = 0;
  for (let match = mark.exec(sql); match !== null; match = mark.exec(sql)) {
    depth += match[0] === '/*' ? 1 : -1;
    if (depth === 0) return mark.lastIndex;
  }
  return sql.length;
}

/** `turnout\005f1` as `turnout_1`. Any mark before four digits is taken for the one that UESCAPE names. */
function unescaped(name: string): string {
  return name.replace(/[^\w\s]\+([0-9a-f]{6})|[^\w\s]([0-9a-f]{4})/gi, (whole, six?: string, four?: string) => {
    const code = Number.parseInt(six ?? four!, 16);
    return code > 0x10_ff_ff ? whole : String.fromCodePoint(code);
  });
}
