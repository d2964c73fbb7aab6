import type { Command } from 'commander';
import { registerEvents } from '../../outbox/index.ts';
import { applyTopics } from '../../relay/index.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { requireConfigured } from '../missing-migrations.ts';
import { table } from '../output.ts';
import type { Report } from '../output.ts';

export function addTopicsCommands(program: Command, tools: CommandTools): void {
  program
    .command('topics')
    .description('Kafka topics and event types of the configured events')
    .command('apply')
    .description(
      'create the topics that are missing, check those that exist, and register source, topics and event types in the database',
    )
    .option('--dry-run', 'say what would be done, and change nothing')
    .action((options: { dryRun?: boolean }, command: Command) =>
      tools.withConfig(command, (config) => topicsApply(config, { dryRun: options.dryRun === true })),
    );
}

/** Creates or checks the topics of the configured events, and registers the events with the outbox. */
export async function topicsApply(loaded: TurnoutConfig, options: { readonly dryRun: boolean }): Promise<Report> {
  const { source, database, broker, events } = need(loaded, 'topics apply', 'source', 'database', 'broker', 'events');
  // Asked of a dry run too: what it says would be done could not be done.
  await requireConfigured({ name: source, database, sets: ['producer'] });
  const admin = broker.topics();
  // The check comes first and changes nothing, so that a topic with another partition count is refused before the
  // database has recorded ours; the database refuses what it has recorded otherwise before a topic is created.
  const changes = await applyTopics(admin, events, { dryRun: true });
  if (!options.dryRun) {
    await registerEvents(database, source, events);
    await applyTopics(admin, events, { dryRun: false });
  }
  const types = events.map((event) => ({
    name: event.name,
    version: event.version,
    topic: event.topic.name,
    order: event.order,
  }));
  const text = [
    table(
      ['topic', 'partitions', options.dryRun ? 'would be' : 'was'],
      changes.map((each) => [each.topic, String(each.partitions), each.change]),
    ),
    '',
    table(
      ['event type', 'version', 'topic', 'order'],
      types.map((each) => [each.name, String(each.version), each.topic, each.order]),
    ),
    options.dryRun
      ? `Nothing was changed; without --dry-run these are registered for source ${source}.`
      : `Registered for source ${source}.`,
  ].join('\n');
  return { data: { dryRun: options.dryRun, source, topics: changes, events: types }, text };
}
