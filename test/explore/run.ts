import type { Breakage } from './breakages.ts';
import type { State, StepKind } from './search.ts';
import type { Bounds, Layout } from './world.ts';

/** One exploration: its bounds, where things are, and what is broken on purpose. */
export interface Run {
  readonly bounds: Bounds;
  readonly layout: Layout;
  readonly breakage: Breakage | undefined;
}

/**
 * Offers one step: `change` writes it into a copy of the world, and may say what it has broken. The label is asked for after
 * the change.
 */
export type Step = (kind: StepKind, label: () => string, change: (next: State) => string | undefined) => void;

/** Keeps what a pure function gave, by a number that stands for its arguments: exploring asks the same again and again. */
export function remembered<Value>(): (code: number, compute: () => Value) => Value {
  const known = new Map<number, Value>();
  return (code, compute) => {
    let value = known.get(code);
    if (value === undefined) {
      value = compute();
      known.set(code, value);
    }
    return value;
  };
}
