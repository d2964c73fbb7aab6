// Breadth-first search over all states that can be reached, with what is needed to tell the shortest way to any of them, and to
// find every state from which the end can no longer be reached.

/** A state: a fixed number of bytes, a multiple of four. */
export type State = Uint8Array;

/**
 * What a step is to the question whether everything can still be finished. `progress`: somebody whose work it is does it, sooner
 * or later. `chance`: a fault, or an operator; nothing may depend on it.
 */
export type StepKind = 'progress' | 'chance';

export type Emit = (next: State, kind: StepKind, label: () => string, broken?: string) => void;

export interface Model {
  /** Bytes of a state. */
  readonly size: number;
  readonly initial: State;
  /** Emits all steps from a state; the array emitted may be used again afterwards. */
  next(state: State, emit: Emit): void;
  /** What is wrong with a state in itself, if anything. */
  judge(state: State): string | undefined;
  /** Whether all is done. */
  isFinished(state: State): boolean;
  /** What a state looks like, for people. */
  show(state: State): string;
}

export interface Violation {
  /** What is broken, in a sentence. */
  readonly what: string;
  /** The shortest way there. */
  readonly trace: readonly string[];
  /** What the last state looks like. */
  readonly state: string;
}

export interface Explored {
  readonly states: number;
  readonly steps: number;
  /** How many steps away the farthest state is. */
  readonly depth: number;
  /** Whether every state within the bounds was seen. */
  readonly exhausted: boolean;
  readonly violation: Violation | undefined;
}

export interface Limits {
  readonly maxStates: number;
}

/** Sees every state, stops at the first violation. */
export function explore(model: Model, { maxStates }: Limits): Explored {
  const seen = stateSet(model.size);
  const parents = growing();
  const ordinals = growing();
  const edges = growing();
  const edgesFrom = growing();
  const scratch = new Uint8Array(model.size);
  seen.add(model.initial);
  parents.push(-1);
  ordinals.push(0);

  let steps = 0;
  let depth = 0;
  let levelEnds = 1;
  let bad: { readonly from: number; readonly ordinal: number; readonly what: string } | undefined;
  let current = 0;
  const result = (exhausted: boolean, violation?: Violation): Explored => ({
    states: seen.count(),
    steps,
    depth,
    exhausted,
    violation,
  });
  const traced = (index: number, what: string, last?: number): Violation => ({
    what,
    ...retrace(model, seen, parents, ordinals, index, last),
  });

  const wrong = model.judge(model.initial);
  if (wrong !== undefined) return result(false, traced(0, wrong));
  for (; current < seen.count(); current++) {
    if (current === levelEnds) {
      depth++;
      levelEnds = seen.count();
    }
    edgesFrom.push(edges.length());
    seen.read(current, scratch);
    let ordinal = 0;
    model.next(scratch, (next, kind, _label, broken) => {
      const here = ordinal++;
      steps++;
      if (bad !== undefined) return;
      const before = seen.count();
      const index = seen.add(next);
      if (kind === 'progress') edges.push(index);
      let what = broken;
      if (index === before) {
        parents.push(current);
        ordinals.push(here);
        what ??= model.judge(next);
      }
      if (what !== undefined) bad = { from: current, ordinal: here, what };
    });
    if (bad !== undefined) return result(false, traced(bad.from, bad.what, bad.ordinal));
    if (seen.count() > maxStates) return result(false);
  }
  edgesFrom.push(edges.length());

  const stuck = firstThatCannotFinish(model, seen, edges, edgesFrom);
  if (stuck === undefined) return result(true);
  const { what, trace, state } = traced(stuck, 'Stuck: nothing that anybody does leads to the end any more.');
  const example = goingOn(model, seen, stuck);
  return result(true, { what, trace: [...trace, ...example.map((label) => `(then, for example) ${label}`)], state });
}

/**
 * Backward reachability: marks what is finished, then whatever has a step of progress to something marked, until nothing is
 * added. Gives the first state, in the order of the search, that is not marked.
 */
function firstThatCannotFinish(model: Model, seen: StateSet, edges: Growing, edgesFrom: Growing): number | undefined {
  const count = seen.count();
  const can = new Uint8Array(count);
  const scratch = new Uint8Array(model.size);
  for (let index = 0; index < count; index++) {
    seen.read(index, scratch);
    if (model.isFinished(scratch)) can[index] = 1;
  }
  const targets = edges.all();
  const from = edgesFrom.all();
  // From the last to the first: most steps lead to states that were found later, so that few rounds do.
  for (let added = true; added;) {
    added = false;
    for (let index = count - 1; index >= 0; index--) {
      if (can[index] === 1) continue;
      for (let edge = from[index]!; edge < from[index + 1]!; edge++) {
        if (can[targets[edge]!] === 1) {
          can[index] = 1;
          added = true;
          break;
        }
      }
    }
  }
  const stuck = can.indexOf(0);
  return stuck === -1 ? undefined : stuck;
}

/** How it may go on after a state, by steps of progress that lead to something new, until there is none. */
function goingOn(model: Model, seen: StateSet, index: number): string[] {
  const state = new Uint8Array(model.size);
  seen.read(index, state);
  const visited = new Set([state.join()]);
  const labels: string[] = [];
  for (let goesOn = true; goesOn && labels.length < 12;) {
    let found: { readonly state: State; readonly label: string } | undefined;
    model.next(state, (next, kind, label) => {
      if (found === undefined && kind === 'progress' && !visited.has(next.join()))
        found = { state: next.slice(), label: label() };
    });
    goesOn = found !== undefined;
    if (found === undefined) continue;
    state.set(found.state);
    visited.add(state.join());
    labels.push(found.label);
  }
  return labels;
}

/** The labels of the steps that lead to a state, and on by the step with the ordinal `last`. */
function retrace(
  model: Model,
  seen: StateSet,
  parents: Growing,
  ordinals: Growing,
  index: number,
  last: number | undefined,
): Pick<Violation, 'trace' | 'state'> {
  const ways: { readonly from: number; readonly ordinal: number }[] = [];
  if (last !== undefined) ways.push({ from: index, ordinal: last });
  for (let at = index; parents.at(at) !== -1; at = parents.at(at))
    ways.push({ from: parents.at(at), ordinal: ordinals.at(at) });
  const scratch = new Uint8Array(model.size);
  seen.read(index, scratch);
  let state = model.show(scratch);
  const trace = ways.reverse().map(({ from, ordinal }) => {
    seen.read(from, scratch);
    let count = 0;
    let text = '';
    model.next(scratch, (next, _kind, label) => {
      if (count++ !== ordinal) return;
      text = label();
      state = model.show(next);
    });
    return text;
  });
  return { trace, state };
}

interface StateSet {
  count(): number;
  /** The index of a state; that of a new one is the count before. */
  add(state: State): number;
  read(index: number, into: State): void;
}

/** States by index, in one piece of memory; found by open addressing. */
function stateSet(size: number): StateSet {
  const words = size / 4;
  let arena = new Int32Array(words * 1024);
  let table = new Int32Array(4096).fill(-1);
  let count = 0;
  const probe = new Int32Array(words);
  const probeBytes = new Uint8Array(probe.buffer);

  function hashOf(source: Int32Array, start: number): number {
    let hash = 0x9e3779b9 | 0;
    for (let word = start; word < start + words; word++) {
      hash = Math.imul(hash ^ source[word]!, 0x85ebca6b);
      hash ^= hash >>> 15;
    }
    hash = Math.imul(hash, 0xc2b2ae35);
    return (hash ^ (hash >>> 16)) >>> 0;
  }

  function isAt(index: number): boolean {
    const start = index * words;
    for (let word = 0; word < words; word++) if (arena[start + word] !== probe[word]) return false;
    return true;
  }

  function growTable(): void {
    table = new Int32Array(table.length * 2).fill(-1);
    for (let index = 0; index < count; index++) {
      let slot = hashOf(arena, index * words) % table.length;
      while (table[slot] !== -1) slot = (slot + 1) % table.length;
      table[slot] = index;
    }
  }

  return {
    count: () => count,
    add(state) {
      probeBytes.set(state);
      let slot = hashOf(probe, 0) % table.length;
      for (; table[slot] !== -1; slot = (slot + 1) % table.length) if (isAt(table[slot]!)) return table[slot]!;
      if ((count + 1) * words > arena.length) {
        const larger = new Int32Array(arena.length * 2);
        larger.set(arena);
        arena = larger;
      }
      arena.set(probe, count * words);
      table[slot] = count;
      if (++count > table.length / 2) growTable();
      return count - 1;
    },
    read(index, into) {
      into.set(new Uint8Array(arena.buffer, index * size, size));
    },
  };
}

interface Growing {
  push(value: number): void;
  at(index: number): number;
  length(): number;
  all(): Int32Array;
}

function growing(): Growing {
  let values = new Int32Array(1024);
  let length = 0;
  return {
    push(value) {
      if (length === values.length) {
        const larger = new Int32Array(values.length * 2);
        larger.set(values);
        values = larger;
      }
      values[length++] = value;
    },
    at: (index) => values[index]!,
    length: () => length,
    all: () => values.subarray(0, length),
  };
}
