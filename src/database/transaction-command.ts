/**
 * What a statement does to the transaction it runs in, as far as a connection that joins an open transaction must know.
 *
 * - `begin`, `commit`, `rollback`: become savepoints.
 * - `ignore`: changes nothing that a joined transaction could honour or break (`set transaction read write`).
 * - `refuse`: can't be honoured inside another transaction (`prepare transaction`, `commit and chain`, a stricter
 *   isolation level, several statements in one text of which one is such a command).
 * - `other`: any other statement.
 */
export type TransactionCommand = 'begin' | 'commit' | 'rollback' | 'ignore' | 'refuse' | 'other';

// Most statements have none of these words and are not looked at any further.
const suspicious = /\b(?:begin|start|commit|end|rollback|abort|prepare|transaction)\b/i;

/** Tells which {@link TransactionCommand} a text of SQL is. */
export function transactionCommand(sql: string): TransactionCommand {
  if (!suspicious.test(sql)) return 'other';
  const statements = bare(sql)
    .split(';')
    .map((statement) => statement.trim().replace(/\s+/g, ' ').toLowerCase())
    .filter((statement) => statement !== '');
  const commands = statements.map(commandOf);
  if (commands.length === 1) return commands[0]!;
  return commands.every((command) => command === 'other') ? 'other' : 'refuse';
}

/** A savepoint that a statement sets, or takes the transaction back to, or gives up. */
export interface SavepointCommand {
  readonly command: 'set' | 'rollback' | 'release';
  readonly name: string;
}

/** The {@link SavepointCommand}s in a text of SQL, in their order. */
export function savepointCommands(sql: string): SavepointCommand[] {
  if (!/\b(?:savepoint|release|rollback)\b/i.test(sql)) return [];
  const names: string[] = [];
  // A quoted name is put aside, lest it be taken for a string that doesn't count.
  const named = sql.replace(/\b(savepoint|release|to)\s+"((?:[^"]|"")*)"/gi, (_, word: string, name: string) => {
    return `${word} "" ${names.push(name.replaceAll('""', '"')) - 1}`;
  });
  return bare(named)
    .split(';')
    .flatMap((statement) => {
      const match = savepointPattern.exec(statement.trim());
      if (match === null) return [];
      const { set, rollback, release } = match.groups as Record<string, string | undefined>;
      const word = set ?? rollback ?? release!;
      const name = /^\d+$/.test(word) ? names[Number(word)]! : word.toLowerCase();
      return [{ command: set !== undefined ? 'set' : rollback !== undefined ? 'rollback' : 'release', name }];
    });
}

const savepointPattern =
  /^(?:savepoint\s+(?<set>\S+)|rollback(?:\s+(?:work|transaction))?\s+to(?:\s+savepoint)?\s+(?<rollback>\S+)|release(?:\s+savepoint)?\s+(?<release>\S+))$/i;

function commandOf(statement: string): TransactionCommand {
  if (/^(?:begin|start transaction)\b/.test(statement)) return strict(statement) ? 'refuse' : 'begin';
  if (/^set (?:local )?transaction\b/.test(statement)) return strict(statement) ? 'refuse' : 'ignore';
  if (/^prepare transaction\b/.test(statement) || /^(?:commit|rollback) prepared\b/.test(statement)) return 'refuse';
  if (/^(?:commit|end|rollback|abort)\b.* and chain$/.test(statement)) {
    return statement.endsWith(' and no chain') ? commandOf(statement.replace(/ and no chain$/, '')) : 'refuse';
  }
  if (/^(?:commit|end)\b/.test(statement)) return 'commit';
  if (/^rollback(?: work| transaction)? to\b/.test(statement)) return 'other';
  if (/^(?:rollback|abort)\b/.test(statement)) return 'rollback';
  return 'other';
}

function strict(statement: string): boolean {
  return /\b(?:serializable|repeatable read|snapshot)\b/.test(statement);
}

/** The text with what is quoted or commented out taken away, so that words and semicolons in it don't count. */
function bare(sql: string): string {
  return sql.replace(quotedOrCommented, ' ');
}

const quotedOrCommented =
  /--[^\n]*|\/\*[\s\S]*?\*\/|\b[eE]'(?:[^'\\]|\\[\s\S]|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|\$([A-Za-z_\u0080-\uffff][\w\u0080-\uffff]*)?\$[\s\S]*?\$\1\$/g;
