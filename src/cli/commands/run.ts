import { together } from '../../lifecycle/index.ts';
import { createRelay, outboxKeeper } from '../../relay/index.ts';
import { rpcSweeper } from '../../switchover/index.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import { loggerFor } from '../logger.ts';
import type { Io } from '../output.ts';
import { runService } from './run-service.ts';

/** Everything that a publishing service needs beside itself, as one process. */
export async function run(loaded: TurnoutConfig, io: Io): Promise<undefined> {
  const { source, database, broker, switchovers = [] } = need(loaded, 'run', 'source', 'database', 'broker');
  const logger = loggerFor(io);
  const service = together('turnout run', [
    outboxKeeper({ database, logger }),
    createRelay({ database, publisher: broker.publisher(), logger }),
    ...(switchovers.length === 0 ? [] : [rpcSweeper({ source, database, switchovers, logger })]),
  ]);
  await runService(service, io);
}
