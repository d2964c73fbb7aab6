/**
 * Why a statement can't be part of a rehearsal, which is taken back with a savepoint: what it does would stay (a lock of
 * the session, a prepared statement), it would lift the bounds on its time, or it would end the savepoint itself.
 * Undefined for every other statement. A text is all there is to see here: what a function of the user's own does inside is not.
 */
export function refusedInRehearsal(sql: string): string | undefined {
  if (!suspicious.test(sql)) return undefined;
  if (/\bpg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?\s*\(/i.test(sql))
    return 'A lock of the session can’t be taken in a rehearsal: it would outlive it.';
  if (/\b(?:statement|lock|transaction|idle_in_transaction_session)_timeout\b/i.test(sql))
    return 'The time-outs of a rehearsal can’t be changed in it.';
  if (/(?:^|;)\s*(?:prepare|deallocate|listen|unlisten|discard|reset|load|checkpoint)\b/i.test(sql))
    return `${JSON.stringify(sql.slice(0, 80))} would outlive a rehearsal.`;
  // Turnout's own savepoints are numbered: they are not the handler's to end.
  if (/\b(?:to|release)(?:\s+savepoint)?\s+"?turnout_/i.test(sql))
    return 'The savepoint of a rehearsal is not ended by what runs in it.';
  return undefined;
}

const suspicious = /advisory|_timeout|prepare|deallocate|listen|discard|reset|load|checkpoint|turnout_/i;
