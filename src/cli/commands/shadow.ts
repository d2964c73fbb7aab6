import { InvalidArgumentError } from 'commander';
import type { Command } from 'commander';
import type { Queryable } from '../../database/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import { askForEvidence, shadowReport, unwatchTable, waiveMismatch, watchTable } from '../../switchover/index.ts';
import type { EvidenceScope, ShadowReport } from '../../switchover/index.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { consumerDatabase, consumerView } from '../consumer-view.ts';
import { table } from '../output.ts';
import type { Report } from '../output.ts';

export function addShadowCommands(program: Command, tools: CommandTools): void {
  const shadow = tools.group(program, 'shadow').description('what stage shadow has found, and what it watches');
  shadow
    .command('report')
    .argument('<name>', 'name of a switchover, or of its consumer')
    .option(
      '--since <when>',
      'a time (2026-11-20T10:00Z) or how long ago (30m, 24h, 7d); default: the newest release or stage change',
      timeOf,
    )
    .option('--fail-on-mismatch', 'exit with 1 if a group counts as mismatch, or an event is missing')
    .description('whether the event path does what the call did: deliveries, decisions, and where they differ')
    .action((name: string, options: ReportOptions, command: Command) =>
      tools.withConfig(command, async (config) => {
        const { report, printed } = await showShadow(config, name, options);
        if (options.failOnMismatch !== true) return printed;
        if (command.optsWithGlobals<{ json?: boolean }>().json !== true) tools.print(command, printed);
        failOnMismatch(report);
        return command.optsWithGlobals<{ json?: boolean }>().json === true ? printed : undefined;
      }),
    );
  shadow
    .command('waive')
    .argument('<name>', 'name of a switchover, or of its consumer')
    .argument('<fingerprint>', 'of a group of the report')
    .requiredOption('--until <date>', 'when it counts again', dateOf)
    .requiredOption('-r, --reason <text>', 'why it may differ until then')
    .description('let a group of mismatches not count until a date')
    .action((name: string, fingerprint: string, options: { until: Date; reason: string }, command: Command) =>
      tools.withConfig(command, async (config) => {
        const { consumer, database } = needDatabase(config, name);
        await waiveMismatch(database, consumer, fingerprint, options);
        const until = options.until.toISOString();
        return {
          data: { consumer, fingerprint, until },
          text: `Group ${fingerprint} of ${consumer} does not count until ${until}.`,
        };
      }),
    );
  for (const how of ['watch', 'unwatch'] as const) {
    shadow
      .command(how)
      .argument('<table...>', 'tables that handlers write to, with their schema unless it is on the search path')
      .option('--consumer <name>', 'in whose database; default: the only consumer of the configuration')
      .description(how === 'watch' ? 'let comparisons see what is written to tables' : 'take that back')
      .action((tables: string[], options: { consumer?: string }, command: Command) =>
        tools.withConfig(command, (config) => watch(config, how, tables, options.consumer)),
      );
  }
}

interface ReportOptions {
  readonly since?: Date;
  readonly failOnMismatch?: boolean;
}

/** The report, for programs and for people. */
export async function showShadow(
  config: TurnoutConfig,
  name: string,
  { since }: ReportOptions,
): Promise<{ readonly report: ShadowReport; readonly printed: Report }> {
  const consumer = consumerOf(config, name);
  const database = consumerDatabase(config, consumer);
  // Of the switchover, if one is named: another one of the same consumer has its own report.
  const definition = config.switchovers?.find((each) => each.name === name);
  const scope =
    definition === undefined || config.source === undefined
      ? {}
      : { source: config.source, eventTypes: definition.eventTypes };
  const report =
    database === undefined
      ? await servedReport(config, consumer, scope, since)
      : await shadowReport(database, consumer, since === undefined ? scope : { ...scope, since });
  return { report, printed: { data: { ...report }, text: reportText(report) } };
}

/** What the consumer's team serves; of the time that was asked for, or nothing: a window that is another one proves nothing. */
async function servedReport(
  config: TurnoutConfig,
  consumer: string,
  scope: EvidenceScope,
  since: Date | undefined,
): Promise<ShadowReport> {
  if (config.evidence?.[consumer] === undefined) throw noDatabase(consumer);
  const withinMs = since === undefined ? undefined : Math.max(0, Date.now() - since.getTime());
  const question = { ...scope, shadow: true, ...(withinMs === undefined ? {} : { withinMs }) };
  const { evidence, error } = await askForEvidence(consumerView(config, consumer), question);
  const problem =
    evidence === undefined
      ? (error ?? 'nothing came')
      : evidence.shadow === undefined
        ? 'it serves no report of stage shadow'
        : withinMs !== undefined &&
            (evidence.withinMs !== withinMs || !['asked', 'release'].includes(evidence.shadow.sinceWhy))
          ? 'it serves the report of another time than --since: it has to pass on `withinMs`'
          : undefined;
  if (problem === undefined) return evidence!.shadow!;
  throw new TurnoutError(
    'TURNOUT_CONFIG_INVALID',
    `What \`evidence\` of the configuration fetches of consumer ${consumer} will not do: ${problem}.`,
    { details: { path: `evidence.${consumer}`, consumer } },
  );
}

/** Throws TURNOUT_SHADOW_MISMATCHED, with the report in its details. */
export function failOnMismatch(report: ShadowReport): void {
  const { decisions, deliveries } = report;
  const found = [
    [decisions.mismatched, 'decisions differ'],
    [deliveries.missing, 'events are missing'],
    [deliveries.undecodable, 'events can’t be decoded'],
  ].filter(([count]) => count !== 0);
  if (found.length === 0) return;
  const what = found.map(([count, text]) => `${count} ${text}`).join(', ');
  throw new TurnoutError('TURNOUT_SHADOW_MISMATCHED', `In the shadow of ${report.consumer} ${what}.`, {
    details: { ...report },
  });
}

async function watch(
  config: TurnoutConfig,
  how: 'watch' | 'unwatch',
  tables: readonly string[],
  name: string | undefined,
): Promise<Report> {
  const names = config.consumers?.map((consumer) => consumer.name) ?? [];
  if (name === undefined && names.length !== 1) {
    throw new TurnoutError(
      'TURNOUT_CONFIG_INVALID',
      `Name a consumer with --consumer (there are: ${names.join(', ') || 'none'}).`,
      {
        details: { path: 'consumers' },
      },
    );
  }
  const { consumer, database } = needDatabase(config, name ?? names[0]!);
  for (const each of tables) await (how === 'watch' ? watchTable : unwatchTable)(database, each);
  const text = how === 'watch' ? 'is compared from now on' : 'is compared no more';
  return { data: { consumer, [how]: tables }, text: `What is written to ${tables.join(', ')} ${text}.` };
}

/** A name may be a switchover's. */
function consumerOf(config: TurnoutConfig, name: string): string {
  return config.switchovers?.find((switchover) => switchover.name === name)?.consumer ?? name;
}

function needDatabase(config: TurnoutConfig, name: string): { consumer: string; database: Queryable } {
  const consumer = consumerOf(config, name);
  const database = consumerDatabase(config, consumer);
  if (database === undefined) throw noDatabase(consumer);
  return { consumer, database };
}

function noDatabase(consumer: string): TurnoutError {
  return new TurnoutError(
    'TURNOUT_CONFIG_INVALID',
    `The configuration knows no database of consumer ${consumer}: name it in \`consumers\` or \`consumerDatabases\`.`,
    { details: { path: 'consumerDatabases', consumer } },
  );
}

function reportText({ consumer, since, sinceWhy, deliveries, decisions, variants, groups }: ShadowReport): string {
  const whys = {
    asked: '',
    stage: ', when the stage became shadow',
    release: ', when the newest release was first seen',
    kept: '',
  };
  const { p50, p99 } = deliveries.delayMs;
  return [
    `Shadow of ${consumer}, ${since === null ? 'all that is kept' : `since ${since}${whys[sinceWhy]}`}`,
    `deliveries: ${deliveries.expected} called, ${deliveries.arrived} arrived, ${deliveries.missing} missing, ${deliveries.waiting} may come yet, ${deliveries.undecodable} could not be handled, ${deliveries.outOfOrder} out of order`,
    ...(p50 === null ? [] : [`  delay: half within ${p50} ms, 99 % within ${p99} ms`]),
    ...deliveries.problems.map(({ problem, count }) => `  ${count} × ${problem}`),
    `decisions: ${decisions.compared} compared, ${decisions.matched} matched, ${decisions.mismatched} mismatched, ${decisions.waived} waived; ${decisions.failed} comparisons failed, ${decisions.skipped} skipped`,
    ...(variants.length === 0
      ? []
      : [
          '',
          table(
            ['variant', 'compared'],
            variants.map((each) => [each.variant, each.compared === 0 ? 'never' : String(each.compared)]),
          ),
        ]),
    ...groups.map((group) =>
      [
        `\n${group.fingerprint}: ${group.count} × ${group.kind}, ${group.eventType}, last ${group.lastAt}${group.waivedUntil === undefined ? '' : `, waived until ${group.waivedUntil}`}`,
        ...group.paths.map((path) => `  ${path}`),
        ...(group.example === null
          ? []
          : [
              `  the call did   ${JSON.stringify(group.example.expected)}`,
              `  the event does ${JSON.stringify(group.example.actual)}`,
              `  for instance   ${group.example.effectKey}`,
            ]),
      ].join('\n'),
    ),
  ].join('\n');
}

const units = { m: 60_000, h: 3_600_000, d: 86_400_000 };

function timeOf(text: string): Date {
  const match = /^(\d{1,5})([mhd])$/.exec(text);
  return match === null
    ? dateOf(text)
    : new Date(Date.now() - Number(match[1]) * units[match[2] as keyof typeof units]);
}

function dateOf(text: string): Date {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) throw new InvalidArgumentError('It is a date, such as 2026-12-24.');
  return date;
}
