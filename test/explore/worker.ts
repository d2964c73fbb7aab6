// One exploration in a process of its own: the memory is given back, and both cores are used.
import { isBreakage } from './breakages.ts';
import { families, worldOf } from './families.ts';
import { modelOf } from './model.ts';
import { explore } from './search.ts';
import type { Explored } from './search.ts';

/** What the parent asks for: the name of a family, or of a breakage. */
export interface Question {
  readonly name: string;
}

export interface Answer {
  readonly explored: Explored;
  readonly seconds: number;
}

/** Some 100 bytes a state: far below what the machine has. */
const maxStates = 20_000_000;

function answer(name: string): Answer {
  const began = performance.now();
  const bounds = isBreakage(name) ? worldOf[name] : families.find((family) => family.name === name)!.bounds;
  const explored = explore(modelOf(bounds, isBreakage(name) ? name : undefined), { maxStates });
  return { explored, seconds: (performance.now() - began) / 1000 };
}

process.on('message', ({ name }: Question) => process.send!(answer(name)));
