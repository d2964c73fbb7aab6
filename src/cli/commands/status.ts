import type { Command } from 'commander';
import { switchoverStatus } from '../../switchover/index.ts';
import { guaranteeOf } from '../guarantee.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import type { Report } from '../output.ts';

export function addStatusCommands(program: Command, tools: CommandTools): void {
  program
    .command('status')
    .description('what is promised for each switchover and consumer as it is configured now, and how the relay stands')
    .action((_options: unknown, command: Command) => tools.withConfig(command, (config) => showStatus(config)));
}

/** What is promised for each switchover, and how the relay of this database stands. */
export async function showStatus(loaded: TurnoutConfig): Promise<Report> {
  const { source, database } = need(loaded, 'status', 'source', 'database');
  const [switchovers, relay] = await Promise.all([switchoverStatus(database, source), relayStatus(loaded)]);
  const described = switchovers.map((each) => ({
    ...each,
    guarantees: guaranteeOf(
      each,
      loaded.consumers?.find((consumer) => consumer.name === each.consumer),
    ),
  }));
  const text = [
    `source ${source}: ${relay.relays === 0 ? 'no relay has published yet' : `last tick ${relay.secondsSinceTick} s ago by ${relay.lastRelay}`}`,
    ...described.map((each) =>
      [
        `\n${each.name}: ${each.consumer}, stage ${each.stage}, ${each.owedCalls} calls owed`,
        ...each.guarantees.map((line) => `  - ${line}`),
      ].join('\n'),
    ),
    ...(described.length === 0 ? ['\nNo switchovers.'] : []),
  ].join('\n');
  return { data: { source, relay, switchovers: described }, text };
}

interface RelayStatus {
  readonly relays: number;
  readonly lastRelay: string | null;
  readonly secondsSinceTick: number | null;
}

async function relayStatus(config: TurnoutConfig): Promise<RelayStatus> {
  const { database } = need(config, 'status', 'database');
  const { rows } = await database.query<RelayStatus>(
    `select (select count(distinct t.relay)::int from turnout.relay_tick t) as relays,
            last.relay as "lastRelay", round(extract(epoch from clock_timestamp() - last.at))::int as "secondsSinceTick"
       from (values (1)) one
       left join lateral (select t.relay, t.at from turnout.relay_tick t order by t.at desc limit 1) last on true`,
  );
  return rows[0] ?? { relays: 0, lastRelay: null, secondsSinceTick: null };
}
