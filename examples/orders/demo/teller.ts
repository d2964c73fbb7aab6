// What every chapter of the story needs: to say what it does, to do it, and to wait for what follows.
import { setTimeout as delay } from 'node:timers/promises';
import { waitFor } from '../../../test/support/index.ts';
import type { Load } from './load.ts';
import type { View } from './view.ts';
import type { Watch } from './watch.ts';
import { switchArguments, switchoverOf } from './world.ts';
import type { CalledService, Refusal, StageRequest, World } from './world.ts';

export interface Stage {
  readonly world: World;
  readonly load: Load;
  readonly view: View;
  readonly watch: Watch;
  /** Aborted on Ctrl-C. */
  readonly signal: AbortSignal;
  readonly orders: number;
}

export interface Teller extends Stage {
  /** How something is ended, in words. */
  readonly end: string;
  readonly forSeconds: (seconds: number) => Promise<void>;
  readonly until: (what: string, condition: () => boolean | Promise<boolean>, deadlineMs?: number) => Promise<void>;
  /** Sets a stage; to be refused is an error. */
  readonly switchTo: (service: CalledService, request: StageRequest) => Promise<void>;
  /** Sets a stage as soon as its check says ready, and tells what is waited for. Never forced. */
  readonly promote: (service: CalledService, request: StageRequest) => Promise<void>;
  /** Asks once for a stage. */
  readonly tryTo: (service: CalledService, request: StageRequest) => Promise<Refusal | undefined>;
}

export function tellerOf(stage: Stage): Teller {
  const { world, view, signal } = stage;
  const command = (service: CalledService, request: StageRequest): void => {
    const words = switchArguments(request).map((word) => (word.includes(' ') ? `"${word}"` : word));
    view.say(`$ turnout switch ${switchoverOf[service]} ${words.join(' ')}`);
  };
  const until: Teller['until'] = async (what, condition, deadlineMs = 90_000) => {
    await waitFor(
      async () => {
        signal.throwIfAborted();
        return condition();
      },
      { what, deadlineMs, everyMs: 100 },
    );
    signal.throwIfAborted();
  };
  return {
    ...stage,
    end: world.kills ? 'SIGKILL to' : 'Stopping',
    until,
    async forSeconds(seconds) {
      await delay(seconds * 1000, undefined, { signal });
    },
    async switchTo(service, request) {
      command(service, request);
      const refusal = await world.switchTo(service, request);
      if (refusal !== undefined) throw new Error(`Refused: ${JSON.stringify(refusal)}`);
    },
    async promote(service, request) {
      command(service, request);
      const told = new Set<string>();
      await until(
        `stage ${request.stage} of ${switchoverOf[service]}`,
        async () => {
          const refusal = await world.switchTo(service, request);
          for (const { check, verdict, why } of refusal?.findings ?? []) {
            if (!told.has(check)) view.say(`  not yet: ${check}: ${verdict}: ${why}`);
            told.add(check);
          }
          if (refusal !== undefined) await delay(1_000, undefined, { signal });
          return refusal === undefined;
        },
        180_000,
      );
    },
    tryTo(service, request) {
      command(service, request);
      return world.switchTo(service, request);
    },
  };
}
