import type { Queryable } from '../../database/index.ts';
import { fromDatabaseError, TurnoutError } from '../../errors/index.ts';

/** Rows of a statement; what Turnout's SQL functions refuse is a TurnoutError. */
export async function rowsOf<Row>(database: Queryable, text: string, values: unknown[]): Promise<Row[]> {
  try {
    return (await database.query<Row>(text, values)).rows;
  } catch (error) {
    throw fromDatabaseError(error);
  }
}

export function unknownSwitchover(source: string, name: string): TurnoutError {
  return new TurnoutError('TURNOUT_SWITCHOVER_UNKNOWN', `Switchover ${name} does not exist in source ${source}.`, {
    details: { switchover: name, source },
  });
}
