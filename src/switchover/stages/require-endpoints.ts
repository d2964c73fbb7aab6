import type { Queryable } from '../../database/index.ts';
import { fromDatabaseError, TurnoutError } from '../../errors/index.ts';
import type { SwitchoverDefinition } from '../define-switchover.ts';

type Declared = Pick<SwitchoverDefinition, 'name' | 'endpoint'>;

/**
 * Whether the rows of switchovers say the same of their endpoints as the code. One by calls, the other by what the database allows:
 * a bridged endpoint whose row says `wrapped` would be given a ramp that it can't bear, and called again for what its bridge calls for.
 * Switchovers without a row are left alone. Throws TURNOUT_ENDPOINT_DIFFERS.
 */
export async function requireEndpoints(
  database: Queryable,
  source: string,
  switchovers: readonly Declared[],
): Promise<void> {
  if (switchovers.length === 0) return;
  const { rows } = await database.query<{ name: string; endpoint: string }>(
    'select s.name, s.endpoint from turnout.switchover s where s.source = $1',
    [source],
  );
  for (const { name, endpoint } of switchovers) {
    const row = rows.find((each) => each.name === name);
    if (row !== undefined && row.endpoint !== endpoint) throw endpointDiffers(name, row.endpoint, endpoint);
  }
}

/** Whether the switchovers that move a consumer are of bridged endpoints. Throws TURNOUT_ENDPOINT_DIFFERS. */
export async function requireBridged(database: Queryable, source: string, consumer: string): Promise<void> {
  const { rows } = await database.query<{ name: string; endpoint: string }>(
    `select s.name, s.endpoint from turnout.switchover s where s.source = $1 and s.consumer = $2 and s.endpoint <> 'bridged' limit 1`,
    [source, consumer],
  );
  if (rows[0] !== undefined) throw endpointDiffers(rows[0].name, rows[0].endpoint, 'bridged');
}

/** As {@link requireEndpoints}, before the first event of a process: once they agree, it asks no more. */
export function endpointsOnce(
  source: string,
  switchovers: readonly Declared[],
): (database: Queryable) => Promise<void> {
  let agree = switchovers.length === 0;
  return async (database) => {
    if (agree) return;
    try {
      await requireEndpoints(database, source, switchovers);
      agree = true;
    } catch (error) {
      // The transaction had failed before; what publishes in it says so.
      if ((error as { code?: unknown }).code !== '25P02') throw fromDatabaseError(error);
    }
  };
}

function endpointDiffers(switchover: string, recorded: string, declared: string): TurnoutError {
  return new TurnoutError(
    'TURNOUT_ENDPOINT_DIFFERS',
    `Switchover ${switchover} is recorded with a ${recorded} endpoint, and declared with a ${declared} one.`,
    { details: { switchover, recorded, declared } },
  );
}
