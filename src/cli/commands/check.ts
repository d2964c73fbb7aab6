import type { Command } from 'commander';
import { checkSwitchover, isStage, switchoverStates } from '../../switchover/index.ts';
import type { CheckVerdict, Finding, Stage, SwitchoverCheck } from '../../switchover/index.ts';
import { TurnoutError } from '../../errors/index.ts';
import { consumerView } from '../consumer-view.ts';
import { need } from '../validate-config.ts';
import type { TurnoutConfig } from '../../config.ts';
import type { CommandTools } from '../command-tools.ts';
import { table } from '../output.ts';
import type { Report } from '../output.ts';

export function addCheckCommands(program: Command, tools: CommandTools): void {
  tools
    .group(program, 'switch')
    .command('check')
    .argument('<name>', 'name of a switchover')
    .option('--for <stage>', 'the stage it is to go to; default: the next one')
    .description('whether a switchover may be promoted, with the numbers behind it; the stage is set by what this says')
    .addHelpText(
      'after',
      '\nready, not-ready (the numbers speak against it) or inconclusive (too little is known). Exit status 0 for all of them.',
    )
    .action((name: string, options: { for?: string }, command: Command) =>
      tools.withConfig(command, (config) => showCheck(config, name, options.for)),
    );
}

/** Checks a switchover by what a configuration knows, and records what came of it: what `turnout switch` asks before a promotion. */
export async function checkConfigured(loaded: TurnoutConfig, name: string, target: Stage): Promise<SwitchoverCheck> {
  const { source, database } = need(loaded, 'switch check', 'source', 'database');
  const [state] = await switchoverStates(database, source, name);
  const definition = loaded.switchovers?.find((each) => each.name === name);
  return checkSwitchover({
    source,
    database,
    name,
    target,
    rules: definition?.checks,
    ...(state === undefined ? {} : consumerView(loaded, state.consumer)),
  });
}

export async function showCheck(loaded: TurnoutConfig, name: string, asked: string | undefined): Promise<Report> {
  const { source, database } = need(loaded, 'switch check', 'source', 'database');
  if (asked !== undefined && !isStage(asked))
    throw new TurnoutError('TURNOUT_STAGE_UNKNOWN', `There is no stage ${asked}.`, { details: { stage: asked } });
  const [state] = await switchoverStates(database, source, name);
  const check = await checkConfigured(loaded, name, asked ?? nextStage(state?.stage ?? 'rpc', state?.endpoint));
  return { data: { ...check }, text: checkText(check) };
}

/** What most would go to from a stage. */
function nextStage(stage: Stage, endpoint: 'wrapped' | 'bridged' = 'wrapped'): Stage {
  switch (stage) {
    case 'rpc':
      return endpoint === 'bridged' ? 'event' : 'shadow';
    case 'shadow':
      return 'ramp';
    case 'ramp':
      return 'event';
    default:
      return 'done';
  }
}

const marks: Record<CheckVerdict, string> = { ready: 'ready', 'not-ready': 'NOT READY', inconclusive: 'inconclusive' };

/** A check for people: each finding with its number, and what to do about those that stand in the way. */
export function checkText({ switchover, stage, target, verdict, findings }: SwitchoverCheck): string {
  const remedies = findings.filter(({ remedy }) => remedy !== '');
  const last: Record<CheckVerdict, string> = {
    ready: `Ready for ${target}: for ten minutes, \`turnout switch ${switchover} ${target}${target === 'ramp' ? ' --percent …' : ''} --reason …\` goes by this.`,
    'not-ready': `Not ready for ${target}.`,
    inconclusive: `Inconclusive: too little is known to go to ${target}.`,
  };
  return [
    `${switchover}: ${stage} → ${target}`,
    '',
    findings.length === 0
      ? 'Nothing has to be checked for that.'
      : table(
          ['check', 'verdict', 'seen'],
          findings.map((each) => [each.check, marks[each.verdict], each.why]),
        ),
    ...(remedies.length === 0 ? [] : ['', ...remedies.map(remedyText)]),
    '',
    last[verdict],
  ].join('\n');
}

function remedyText({ check, remedy }: Finding): string {
  return `  ${check}: ${remedy}`;
}
