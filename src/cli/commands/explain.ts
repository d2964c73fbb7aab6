import type { Command } from 'commander';
import { TurnoutError } from '../../errors/index.ts';
import { explainEvent, explanationText } from '../../switchover/index.ts';
import { consumerDatabase } from '../consumer-view.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import type { Report } from '../output.ts';

export function addExplainCommands(program: Command, tools: CommandTools): void {
  tools
    .group(program, 'switch')
    .command('explain')
    .argument('<event id>', 'id of an event, as the outbox, the envelope (ce_id) and the headers of a call have it')
    .description('why an event went the way it went to each consumer, and what became of it, from the rows alone')
    .action((id: string, _options: unknown, command: Command) =>
      tools.withConfig(command, (config) => showExplanation(config, id)),
    );
}

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

export async function showExplanation(loaded: TurnoutConfig, given: string): Promise<Report> {
  const { database } = need(loaded, 'switch explain', 'database');
  // An effect key will do: it ends in the id.
  const id = given.slice(-36);
  const explained = uuid.test(id)
    ? await explainEvent(database, id, (consumer) => consumerDatabase(loaded, consumer))
    : undefined;
  if (explained === undefined)
    throw new TurnoutError('TURNOUT_EVENT_UNKNOWN', `The outbox holds no event ${given}.`, {
      details: { event: given },
    });
  return { data: { ...explained }, text: explanationText(explained) };
}
