import { readdir, readFile } from 'node:fs/promises';
import { join, relative, resolve } from 'node:path';
import { InvalidArgumentError } from 'commander';
import type { Command } from 'commander';
import { TurnoutError } from '../../errors/index.ts';
import { askForEvidence, switchoverState } from '../../switchover/index.ts';
import type { ConsumerEvidence, EndpointSeen, Stage, UnknownCaller } from '../../switchover/index.ts';
import { consumerView } from '../consumer-view.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { table } from '../output.ts';
import type { Report } from '../output.ts';
import { findSwitchover } from '../source-scan/source-scan.ts';
import type { SourceFile } from '../source-scan/module-names.ts';
import type { CodePlace } from '../source-scan/source-scan.ts';

export function addCleanupCommands(program: Command, tools: CommandTools): void {
  tools
    .group(program, 'switch')
    .command('cleanup')
    .argument('<name>', 'name of a switchover that is done, or about to be')
    .option('--days <number>', 'how far back callers are listed', daysOf, 30)
    .option('--source-folder <folder>', 'where the code is', 'src')
    .description(
      'the code to delete after `done`, the endpoints that nobody calls any more, and who still calls without Turnout',
    )
    .action((name: string, options: { days: number; sourceFolder: string }, command: Command) =>
      tools.withConfig(command, (config) =>
        showCleanup(config, name, {
          days: options.days,
          folder: resolve(tools.io.cwd, options.sourceFolder),
          cwd: tools.io.cwd,
        }),
      ),
    );
}

function daysOf(text: string): number {
  const days = Number(text);
  if (!(days > 0)) throw new InvalidArgumentError('It is a number of days.');
  return days;
}

const aDayMs = 86_400_000;

/** What may go, and what stands in the way. */
export async function showCleanup(
  loaded: TurnoutConfig,
  name: string,
  { days, folder, cwd }: { readonly days: number; readonly folder: string; readonly cwd: string },
): Promise<Report> {
  const { source, database } = need(loaded, 'switch cleanup', 'source', 'database');
  const { stage, consumer } = await switchoverState(database, source, name);
  const code = findSwitchover(await sourcesIn(folder, cwd), name);
  const asked = await askForEvidence(consumerView(loaded, consumer), {});
  const callers = asked.evidence?.callers.filter(({ ageMs }) => ageMs < days * aDayMs);
  const endpoints = asked.evidence === undefined ? undefined : endpointsOf(asked.evidence, stage, days);
  const text = [
    ...(stage === 'done' ? [] : [`${name} is in stage ${stage}: delete nothing before it is done.`, '']),
    codeText(name, code, relative(cwd, folder) || folder),
    '',
    ...(callers === undefined || endpoints === undefined
      ? [
          `Who calls ${consumer} is not known${asked.error === undefined ? '' : ` (${asked.error})`}: name its database in \`consumerDatabases\`, or \`evidence\`.`,
        ]
      : [endpointsText(consumer, endpoints), '', callersText(callers, days)]),
  ].join('\n');
  return {
    data: { switchover: name, consumer, stage, days, code, endpoints: endpoints ?? null, callers: callers ?? null },
    text,
  };
}

interface EndpointLeft extends EndpointSeen {
  /** The switchover is done, so that Turnout calls it no more; nobody else has called for all of the days, and all of them were watched. */
  readonly unused: boolean;
  readonly why: string;
}

function endpointsOf({ at, endpoints, callers }: ConsumerEvidence, stage: Stage, days: number): EndpointLeft[] {
  const since = Date.parse(at) - days * aDayMs;
  return endpoints.map((each) => {
    const isCalled =
      (each.unkeyedAt !== undefined && Date.parse(each.unkeyedAt) >= since) ||
      callers.some(({ endpoint, ageMs }) => endpoint === each.endpoint && ageMs < days * aDayMs);
    if (isCalled) return { ...each, unused: false, why: 'still called without Turnout' };
    if (each.keyedAt !== undefined && Date.parse(each.keyedAt) >= since)
      return { ...each, unused: false, why: `called by Turnout in the last ${days} days` };
    if (stage !== 'done') return { ...each, unused: false, why: `in use: stage ${stage}` };
    if (Date.parse(each.firstAt) > since)
      return { ...each, unused: false, why: `not known: watched since ${each.firstAt} only` };
    return { ...each, unused: true, why: `no caller in ${days} days: may be deleted` };
  });
}

function codeText(name: string, code: readonly CodePlace[], folder: string): string {
  if (code.length === 0) return `No code in ${folder} names ${name}.`;
  const part = (title: string, places: readonly CodePlace[]): string[] =>
    places.length === 0
      ? []
      : [
          title,
          table(
            ['where', 'what', 'code'],
            places.map(({ path, line, kind, code: text }) => [`${path}:${line}`, kind, text.slice(0, 100)]),
          ),
        ];
  const possible = code.filter(({ kind }) => kind === 'possible');
  return [
    ...part(
      `Code that names ${name}, to be deleted:`,
      code.filter(({ kind }) => kind !== 'possible'),
    ),
    ...part('Possibly also, since the name stands there:', possible),
  ].join('\n');
}

function endpointsText(consumer: string, endpoints: readonly EndpointLeft[]): string {
  if (endpoints.length === 0) return `No wrapped endpoint of ${consumer} has told of a call.`;
  return table(
    ['endpoint', 'last with Turnout', 'last without', ''],
    endpoints.map(({ endpoint, keyedAt, unkeyedAt, why }) => [
      endpoint || '(not told)',
      keyedAt ?? 'never',
      unkeyedAt ?? 'never',
      why,
    ]),
  );
}

function callersText(callers: readonly UnknownCaller[], days: number): string {
  if (callers.length === 0) return `Nobody has called without Turnout in the last ${days} days.`;
  return [
    `Called without Turnout in the last ${days} days:`,
    table(
      ['service', 'address', 'endpoint', 'calls', 'last'],
      callers.map((each) => [
        each.service || '(not told)',
        each.address || '(not told)',
        each.endpoint || '(not told)',
        String(each.calls),
        each.lastAt,
      ]),
    ),
  ].join('\n');
}

const isSource = /\.[mc]?[jt]sx?$/;
const notOurs = new Set(['node_modules', 'dist', 'build', 'coverage']);

async function sourcesIn(folder: string, cwd: string): Promise<SourceFile[]> {
  let entries;
  try {
    entries = await readdir(folder, { withFileTypes: true });
  } catch (error) {
    throw new TurnoutError(
      'TURNOUT_CONFIG_INVALID',
      `The sources can't be read: there is no folder ${folder}; name it with --source-folder.`,
      {
        details: { path: 'source-folder', folder },
        cause: error,
      },
    );
  }
  const files = await Promise.all(
    entries.map(async (entry): Promise<SourceFile[]> => {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) return notOurs.has(entry.name) || entry.name.startsWith('.') ? [] : sourcesIn(path, cwd);
      if (!entry.isFile() || !isSource.test(entry.name) || entry.name.endsWith('.d.ts')) return [];
      return [{ path: relative(cwd, path), text: await readFile(path, 'utf8') }];
    }),
  );
  return files.flat();
}
