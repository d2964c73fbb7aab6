import { TurnoutError } from '../errors/index.ts';
import type { SavepointCommand } from './transaction-command.ts';

// One connection, one transaction, several parts of a program that use it without knowing of each other.
//
//   root ── savepoint (BEGIN of legacy code A) ── savepoint (BEGIN of what A calls)
//
// Two rules keep that safe:
// - one statement at a time, in the order asked for;
// - a statement runs only in the scope it belongs to. If code B runs while A's savepoint is open, B waits: a rollback
//   of A would else take B's writes with it, in silence. A wait that can't end is refused after `patienceMs`.

/** What is told when the outcome of a scope is known. */
export interface Ending {
  /** `whole`: for certain, nothing that was done before was taken back by a savepoint; otherwise nobody knows. */
  readonly committed: (whole?: boolean) => void;
  readonly rolledBack: () => void;
}

/** The root of a transaction, or a savepoint in it. */
export interface Scope {
  parent: Scope | undefined;
  readonly savepoint: string;
  ended: boolean;
  /** Whether it was taken back for good: what belongs to it is refused from then on, and never moves up into what is around it. */
  cut: boolean;
  /** In the order of time: who is to be told, and the savepoints that the user has set between. */
  readonly endings: (Ending | UserSavepoint)[];
}

interface UserSavepoint {
  readonly name: string;
}

/** A transaction that is open on one connection. */
export interface OpenTransaction {
  readonly root: Scope;
  /** False once it was committed or rolled back. */
  isOpen(): boolean;
  /** True if it had to end while something still kept the connection, which can then only be closed. */
  isStuck(): boolean;
  /**
   * Runs a statement when it is its turn. Throws TURNOUT_JOIN_REFUSED. One that `stays` keeps the connection for as long as
   * the code likes that runs it (a cursor): others don't wait for it longer than `patienceMs`.
   */
  run<Result>(scope: Scope, statement: () => Promise<Result>, options?: { readonly stays: boolean }): Promise<Result>;
  /** A new scope inside `parent`; it is there at once, its savepoint when `ready` resolves. */
  begin(parent: Scope): { readonly scope: Scope; readonly ready: Promise<void> };
  /** Gives false if the scope had failed and was rolled back, as Postgres does with COMMIT. */
  commit(scope: Scope): Promise<boolean>;
  rollback(scope: Scope): Promise<void>;
  /**
   * Takes a scope back, with all that was begun inside it, whatever its code thinks of that: it waits for the statement
   * that runs and for nothing else, and what that code asks for later is refused. Rejects if the savepoint is gone: then
   * nobody knows what the transaction holds, and it must not be committed. `quiet` is awaited when that statement is over, before
   * anything else is sent.
   */
  cut(scope: Scope, quiet?: () => Promise<unknown>): Promise<void>;
  whenEnded(scope: Scope, ending: Ending): void;
  /** Says that something may have been taken back which was not followed: {@link Ending}'s `committed` is told. */
  doubt(): void;
  /** Follows a savepoint command of the user's own that has succeeded: who registered since one is told of a rollback to it. */
  follow(scope: Scope, savepoint: SavepointCommand): void;
  /** Runs the last statement (COMMIT or ROLLBACK) once what is running is done; what still waits is refused. */
  finish(last: () => Promise<boolean>, options: { abandon: boolean }): Promise<void>;
}

interface Waiter {
  readonly scope: Scope;
  readonly go: () => void;
  readonly refuse: (error: TurnoutError) => void;
}

/** Follows a transaction that `execute`'s connection has just begun. `failed` tells whether it can only be rolled back. */
export function openTransaction(
  execute: (sql: string) => Promise<unknown>,
  failed: () => boolean,
  patienceMs = 10_000,
): OpenTransaction {
  const root: Scope = { parent: undefined, savepoint: '', ended: false, cut: false, endings: [] };
  const waiting: Waiter[] = [];
  let innermost = root;
  let busy = false;
  let closing = false;
  let count = 0;
  let idle: (() => void) | undefined;
  let staysSince: number | undefined;
  let stuck = false;
  /** Whether all that was done in it is in it still, for certain. */
  let whole = true;
  /** Who cuts a scope, and waits for the statement that runs. */
  let afterwards: (() => void) | undefined;

  /** A flow may outlive the savepoint it began; then it is back in the one around it. (One that was cut is nowhere: {@link isCut}.) */
  function standing(scope: Scope): Scope {
    let current = scope;
    while (current.ended && current.parent !== undefined) current = current.parent;
    return current;
  }

  function next(): void {
    if (busy) return;
    if (afterwards !== undefined) {
      // Who cuts comes before everybody who waits, and lets them go on itself.
      const go = afterwards;
      afterwards = undefined;
      busy = true;
      go();
      return;
    }
    const index = waiting.findIndex((waiter) => standing(waiter.scope) === innermost);
    const waiter = index === -1 ? undefined : waiting.splice(index, 1)[0];
    if (waiter === undefined) {
      idle?.();
      return;
    }
    busy = true;
    waiter.go();
  }

  /** Resolves when the connection may be free, or it is time to look whether it ever will be. */
  async function quiet(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      idle = resolve;
      timer = setTimeout(resolve, patienceMs);
    });
    clearTimeout(timer);
  }

  function hasStayed(): boolean {
    return staysSince !== undefined && performance.now() - staysSince >= patienceMs;
  }

  async function turn<Result>(scope: Scope, statement: () => Promise<Result>, stays = false): Promise<Result> {
    if (closing) throw refused('The transaction that this code had joined has ended.');
    if (isCut(scope)) throw cutOff();
    await new Promise<void>((resolve, reject) => {
      let timer: NodeJS.Timeout | undefined;
      const settle = (then: () => void) => () => {
        clearTimeout(timer);
        then();
      };
      const waiter: Waiter = { scope, go: settle(resolve), refuse: (error) => settle(() => reject(error))() };
      waiting.push(waiter);
      next();
      if (!waiting.includes(waiter)) return;
      const lookAgain = (): void => {
        // A statement that takes long is no reason to give up; a savepoint that nobody ends is, and a cursor that nobody closes.
        const kept = hasStayed();
        if (standing(scope) === innermost && !kept) {
          timer = setTimeout(lookAgain, patienceMs);
          return;
        }
        waiting.splice(waiting.indexOf(waiter), 1);
        next();
        const other = 'has begun one of its own and not ended it';
        waiter.refuse(
          kept
            ? keptOpen(patienceMs)
            : refused(`Another connection of the joined transaction ${other} for ${patienceMs} ms.`),
        );
      };
      timer = setTimeout(lookAgain, patienceMs);
    });
    if (stays) staysSince = performance.now();
    try {
      return await statement();
    } finally {
      busy = false;
      if (stays) staysSince = undefined;
      next();
    }
  }

  function end(scope: Scope, outcome: keyof Ending): void {
    scope.ended = true;
    innermost = standing(scope);
    for (const ending of endingsOf(scope.endings.splice(0))) {
      if (outcome === 'committed' && scope.parent !== undefined) standing(scope).endings.push(ending);
      else if (outcome === 'committed') ending.committed(whole);
      else ending.rolledBack();
    }
  }

  async function undo(scope: Scope): Promise<void> {
    whole = false;
    await execute(`rollback to savepoint ${scope.savepoint}; release savepoint ${scope.savepoint}`);
    end(scope, 'rolledBack');
  }

  return {
    root,
    isOpen: () => !closing,
    isStuck: () => stuck,
    run: (scope, statement, options) => turn(scope, statement, options?.stays),
    begin(parent) {
      const scope: Scope = { parent, savepoint: `turnout_${++count}`, ended: false, cut: false, endings: [] };
      const ready = turn(parent, async () => {
        try {
          scope.parent = innermost;
          await execute(`savepoint ${scope.savepoint}`);
          innermost = scope;
        } catch (error) {
          scope.ended = true;
          throw error;
        }
      });
      return { scope, ready };
    },
    commit(scope) {
      return turn(scope, async () => {
        if (failed()) {
          await undo(scope);
          return false;
        }
        try {
          await execute(`release savepoint ${scope.savepoint}`);
        } catch (error) {
          if ((error as { code?: unknown }).code !== '25P02') throw error;
          await undo(scope);
          return false;
        }
        end(scope, 'committed');
        return true;
      });
    },
    rollback: (scope) => turn(scope, () => undo(scope)),
    whenEnded(scope, ending) {
      if (isCut(scope)) ending.rolledBack();
      else standing(scope).endings.push(ending);
    },
    doubt() {
      whole = false;
    },
    follow(scope, { command, name }) {
      const { endings } = standing(scope);
      if (command === 'set') {
        endings.push({ name });
        return;
      }
      const at = endings.findLastIndex((entry) => 'name' in entry && entry.name === name);
      if (at === -1) return;
      const since = endings.splice(at);
      if (command === 'rollback') {
        endings.push({ name }); // It still stands; those set after it don't.
        for (const ending of endingsOf(since)) ending.rolledBack();
      } else endings.push(...endingsOf(since));
    },
    async cut(scope, quiet) {
      scope.cut = true;
      whole = false;
      if (closing || scope.ended) throw refused('The savepoint that was to be taken back is gone.');
      for (const waiter of waiting.filter((each) => isCut(each.scope))) {
        waiting.splice(waiting.indexOf(waiter), 1);
        waiter.refuse(cutOff());
      }
      if (busy) await new Promise<void>((resolve) => (afterwards = resolve));
      busy = true;
      try {
        await quiet?.();
        await execute(`rollback to savepoint ${scope.savepoint}; release savepoint ${scope.savepoint}`);
      } finally {
        // From the inside out: who registered in a savepoint inside is told too.
        while (innermost !== root && !scope.ended) {
          const inner = innermost;
          end(inner, 'rolledBack');
        }
        busy = false;
        next();
      }
    },
    async finish(last, { abandon }) {
      if (!abandon) {
        // Statements that nobody awaited are still part of it: they come first.
        await turn(root, async () => undefined);
        while (waiting.length > 0 || busy) {
          if (hasStayed()) throw keptOpen(patienceMs);
          await quiet();
        }
      }
      closing = true;
      for (const waiter of waiting.splice(0))
        waiter.refuse(refused('The transaction that this code had joined was rolled back.'));
      while (busy && !hasStayed()) await quiet();
      stuck = busy;
      let committed = false;
      try {
        // Nothing reaches the server any more: closing the connection rolls back.
        if (!stuck) committed = await last();
      } finally {
        for (let scope: Scope | undefined = innermost; scope !== undefined; scope = scope.parent) {
          scope.ended = true;
          for (const ending of endingsOf(scope.endings.splice(0))) {
            if (committed) ending.committed(whole);
            else ending.rolledBack();
          }
        }
      }
    },
  };
}

/** Whether a scope, or one around it, was cut. */
export function isCut(scope: Scope): boolean {
  for (let current: Scope | undefined = scope; current !== undefined; current = current.parent)
    if (current.cut) return true;
  return false;
}

function endingsOf(entries: readonly (Ending | UserSavepoint)[]): Ending[] {
  return entries.filter((entry) => 'committed' in entry);
}

function keptOpen(patienceMs: number): TurnoutError {
  return refused(`A cursor or query stream has kept the connection of the joined transaction for ${patienceMs} ms.`);
}

function cutOff(): TurnoutError {
  return refused('What this code had written was taken back, and nothing more of it is taken.');
}

export function refused(what: string, details: { readonly rehearsal?: true } = {}): TurnoutError {
  return new TurnoutError('TURNOUT_JOIN_REFUSED', what, { details });
}
