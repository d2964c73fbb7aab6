// The world with its steps and its properties, as the search wants it.
import type { Breakage } from './breakages.ts';
import { callerSteps } from './caller.ts';
import { consumerSteps } from './consumer.ts';
import { producerSteps } from './producer.ts';
import type { Run } from './run.ts';
import type { Model, State } from './search.ts';
import {
  committedOf,
  flag,
  givenOf,
  initialWorld,
  keyNames,
  layoutOf,
  nameOf,
  stageNamed,
  unpackCall,
} from './world.ts';
import type { Bounds } from './world.ts';

export function modelOf(bounds: Bounds, breakage?: Breakage): Model {
  const layout = layoutOf(bounds);
  const run: Run = { bounds, layout, breakage };
  const fork = new Uint8Array(layout.size);
  return {
    size: layout.size,
    initial: initialWorld(bounds, layout),
    next(world, emit) {
      const step: Parameters<typeof producerSteps>[2] = (kind, label, change) => {
        fork.set(world);
        const broken = change(fork);
        emit(fork, kind, label, broken);
      };
      producerSteps(run, world, step);
      callerSteps(run, world, step);
      consumerSteps(run, world, step);
    },
    judge: (world) => lost(run, world),
    isFinished: (world) => isFinished(run, world),
    show: (world) => show(run, world),
  };
}

/** Whether nobody has anything to do for what is committed: no call owed or on its way, all read, nothing held. */
function isQuiet({ bounds, layout }: Run, world: State): boolean {
  if ((world[layout.flags]! & flag.started) === 0) return false;
  for (let event = 0; event < bounds.keys * bounds.events; event++) {
    if (world[layout.row + event] !== 0 || world[layout.held + event] !== 0 || world[layout.zombies + event] !== 0)
      return false;
  }
  for (let key = 0; key < bounds.keys; key++) {
    if (world[layout.call + key] !== 0 || world[layout.draining + key] !== 0) return false;
    if (world[layout.relayed + key] !== committedOf(bounds, layout, world, key)) return false;
  }
  for (let partition = 0; partition < bounds.partitions; partition++) {
    if (world[layout.inHand + partition] !== 0) return false;
    if (world[layout.position + partition] !== world[layout.logLength + partition]) return false;
  }
  return true;
}

/** What is Turnout's to bring to its effect and has none. */
function withoutEffect({ bounds, layout }: Run, world: State): number | undefined {
  for (let event = 0; event < bounds.keys * bounds.events; event++) {
    const stamp = world[layout.stamp + event]!;
    if (stamp !== 0 && givenOf(stamp) !== 'undeclared' && world[layout.effect + event] === 0) return event;
  }
  return undefined;
}

/** No loss: when everybody is done, everything has had its effect. */
function lost(run: Run, world: State): string | undefined {
  const event = withoutEffect(run, world);
  if (event === undefined || !isQuiet(run, world)) return undefined;
  return `Lost: nothing is left to be done, and ${nameOf(run.bounds, event)} never had its effect.`;
}

function isFinished(run: Run, world: State): boolean {
  const { bounds, layout } = run;
  for (let key = 0; key < bounds.keys; key++) {
    if (world[layout.open + key] !== 0 || world[layout.snapshot + key] !== 0) return false;
    if (committedOf(bounds, layout, world, key) !== bounds.events) return false;
  }
  return isQuiet(run, world) && withoutEffect(run, world) === undefined;
}

function show({ bounds, layout }: Run, world: State): string {
  const parts = [`stage ${stageNamed(world[layout.stage]!)}`];
  const list = (title: string, at: number, text: (value: number) => string): void => {
    const found: string[] = [];
    for (let event = 0; event < bounds.keys * bounds.events; event++)
      if (world[at + event] !== 0) found.push(`${nameOf(bounds, event)}${text(world[at + event]!)}`);
    parts.push(`${title}: ${found.length === 0 ? 'none' : found.join(' ')}`);
  };
  list('published', layout.stamp, (stamp) => `=${givenOf(stamp)}`);
  list('calls owed', layout.row, () => '');
  list('held', layout.held, (held) => ` ${['early', 'behind', 'parked'][(held & 3) - 1]}`);
  list('effects', layout.effect, (effect) => ` ${['applied', 'rejected', 'skipped'][effect - 1]}`);
  for (let key = 0; key < bounds.keys; key++) {
    if (world[layout.call + key] === 0) continue;
    const { current } = unpackCall(world[layout.call + key]!);
    parts.push(`a call for ${keyNames[key]}${current + 1} is being made`);
  }
  for (let partition = 0; partition < bounds.partitions; partition++)
    parts.push(`position ${world[layout.position + partition]} of ${world[layout.logLength + partition]}`);
  return parts.join('; ');
}
