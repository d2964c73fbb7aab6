// What a handler left in the watched tables: the net change of each row, whatever SQL led to it.
//
//   insert, then update of the same row   →  one insert of the last state
//   update, then update                   →  one update with all that changed
//   insert, then delete; update to what it was  →  nothing
//
// Values that the database makes up (identity, default now() …) differ between two writes of the same: they are taken out, and
// where they come back (in a column that refers to them) they stand as which row they are of.

/** A watched table, as `turnout.watched_table` tells. */
export interface WatchedTable {
  readonly name: string;
  readonly keyColumns: readonly string[];
  readonly generatedColumns: readonly string[];
  readonly referringColumns: readonly { readonly column: string; readonly table: string; readonly refers: string }[];
}

type Row = Readonly<Record<string, unknown>>;

interface Captured {
  readonly table: string;
  readonly op: 'insert' | 'update' | 'delete' | 'truncate';
  readonly old: Row | null;
  readonly new: Row | null;
}

/** The net change of one row. */
export type Write =
  | { readonly insert: Row }
  /** `where`: its key, or the whole row as it was if the table has none. */
  | { readonly update: Row; readonly where: Row }
  | { readonly delete: Row }
  | { readonly truncate: true };

/** By table, in the order in which rows were first touched. */
export type Writes = Readonly<Record<string, readonly Write[]>>;

/** Reads what the triggers have gathered: a line a row. Undefined: too large to compare, or it could not be gathered. */
export function readCaptured(text: string): readonly Captured[] | undefined {
  if (text === 'too large' || text === 'failed') return undefined;
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Captured);
}

interface Change {
  readonly table: string;
  readonly before: Row | null;
  after: Row | null;
  readonly truncate?: true;
}

/** `keep`: made-up columns that are to be compared all the same, as `mail.created_at`. */
export function netWrites(
  captured: readonly Captured[],
  tables: readonly WatchedTable[],
  keep: ReadonlySet<string> = new Set(),
): Writes {
  const tableOf = new Map(tables.map((table) => [table.name, table]));
  const changes = net(captured, tableOf);
  const places = madeUp(changes, tableOf);
  const writes: Record<string, Write[]> = {};
  for (const change of changes) {
    const write = describe(change, tableOf.get(change.table), places, keep);
    if (write !== undefined) (writes[change.table] ??= []).push(write);
  }
  return writes;
}

function net(captured: readonly Captured[], tableOf: ReadonlyMap<string, WatchedTable>): Change[] {
  const changes: Change[] = [];
  const current = new Map<string, Change>();
  const identify = (table: string, row: Row): string => {
    const columns = tableOf.get(table)?.keyColumns ?? [];
    return JSON.stringify([table, columns.length === 0 ? row : columns.map((column) => row[column])]);
  };
  for (const each of captured) {
    if (each.op === 'truncate') {
      changes.push({ table: each.table, before: null, after: null, truncate: true });
      continue;
    }
    const before = each.old === null ? undefined : current.get(identify(each.table, each.old));
    if (before !== undefined) {
      current.delete(identify(each.table, each.old!));
      before.after = each.new;
      if (each.new !== null) current.set(identify(each.table, each.new), before);
      continue;
    }
    const change: Change = { table: each.table, before: each.old, after: each.new };
    changes.push(change);
    if (each.new !== null) current.set(identify(each.table, each.new), change);
  }
  return changes;
}

/** Which row a made-up value is of: table, column and value → `<mail.id 1>`. */
function madeUp(changes: readonly Change[], tableOf: ReadonlyMap<string, WatchedTable>): ReadonlyMap<string, string> {
  const places = new Map<string, string>();
  const counts = new Map<string, number>();
  for (const { table, before, after } of changes) {
    if (before !== null || after === null) continue;
    const nth = (counts.get(table) ?? 0) + 1;
    counts.set(table, nth);
    for (const column of tableOf.get(table)?.generatedColumns ?? [])
      places.set(placeOf(table, column, after[column]), `<${table}.${column} ${nth}>`);
  }
  return places;
}

function placeOf(table: string, column: string, value: unknown): string {
  return JSON.stringify([table, column, value]);
}

function describe(
  { table, before, after, truncate }: Change,
  shape: WatchedTable | undefined,
  places: ReadonlyMap<string, string>,
  keep: ReadonlySet<string>,
): Write | undefined {
  if (truncate) return { truncate };
  if (before === null && after === null) return undefined;
  const isIgnored = (column: string): boolean =>
    shape?.generatedColumns.includes(column) === true && !keep.has(`${table}.${column}`);
  const settled = (row: Row): Row =>
    Object.fromEntries(Object.entries(row).map(([column, value]) => [column, referred(shape, column, value, places)]));
  const without = (row: Row): Row =>
    Object.fromEntries(Object.entries(settled(row)).filter(([column]) => !isIgnored(column)));
  if (before === null) return { insert: without(after!) };
  // The row was there before: its key means the same on both sides, made up or not.
  const keyColumns = shape?.keyColumns ?? [];
  const where =
    keyColumns.length === 0
      ? before
      : Object.fromEntries(keyColumns.map((column) => [column, referred(shape, column, before[column], places)]));
  if (after === null) return { delete: where };
  const changed = Object.fromEntries(
    Object.entries(after).filter(([column, value]) => JSON.stringify(value) !== JSON.stringify(before[column])),
  );
  if (Object.keys(changed).length === 0) return undefined;
  const update = without(changed);
  return Object.keys(update).length === 0 ? undefined : { update, where };
}

function referred(
  shape: WatchedTable | undefined,
  column: string,
  value: unknown,
  places: ReadonlyMap<string, string>,
): unknown {
  for (const { column: own, table, refers } of shape?.referringColumns ?? []) {
    if (own !== column) continue;
    const place = places.get(placeOf(table, refers, value));
    if (place !== undefined) return place;
  }
  return value;
}
