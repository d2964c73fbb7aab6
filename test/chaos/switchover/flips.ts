// The operator: a stage change every second, of a switchover and to a stage drawn at random; and a look at what is held early.
import { setTimeout as delay } from 'node:timers/promises';
import { setStage } from 'turnout';
import { redrive } from '../../../src/switchover/index.ts';
import { services, source } from './services.ts';
import type { World } from './world.ts';

export interface Flips {
  readonly counts: {
    readonly changes: number;
    readonly rollbacks: number;
    readonly redrives: number;
    readonly refused: number;
  };
  /** Effect keys that were seen waiting for their turn. */
  readonly heldEarly: ReadonlySet<string>;
  /** Ends the changes: every switchover to events, and one of each kind to done. Gives those. */
  finish(): Promise<string[]>;
}

const wishes = ['rpc', 'rpc', 'shadow', 'ramp', 'ramp', 'event', 'event'] as const;

export function startFlips(world: World, random: () => number, say: (text: string) => void): Flips {
  const counts = { changes: 0, rollbacks: 0, redrives: 0, refused: 0 };
  const heldEarly = new Set<string>();
  const over = new AbortController();
  const names = services.map(({ name }) => `${name}-over`);
  const stages = new Map<string, string>(names.map((name) => [name, 'rpc']));

  async function flip(name: string, stage: (typeof wishes)[number] | 'done'): Promise<void> {
    const percent = stage === 'ramp' ? 1 + Math.floor(random() * 99) : 0;
    await setStage(world.database, source, name, stage, { reason: 'chaos', percent, force: true });
    counts.changes++;
    if (stage === 'rpc' && stages.get(name) !== 'rpc') {
      counts.rollbacks++;
      if (random() < 0.5) {
        await redrive(world.database, source, name);
        counts.redrives++;
      }
    }
    stages.set(name, stage);
  }

  const changing = (async () => {
    while (!over.signal.aborted) {
      const name = names[Math.floor(random() * names.length)]!;
      // The database may be away just now.
      await flip(name, wishes[Math.floor(random() * wishes.length)]!).catch(() => counts.refused++);
      await delay(500 + random() * 1_000, undefined, { signal: over.signal }).catch(() => undefined);
    }
  })();
  const looking = (async () => {
    while (!over.signal.aborted) {
      for (const pool of Object.values(world.pools)) {
        const { rows } = await pool
          .query<{ key: string }>(`select h.effect_key as key from turnout.held h where h.reason = 'early'`)
          .catch(() => ({ rows: [] }));
        for (const { key } of rows) heldEarly.add(key);
      }
      await delay(100, undefined, { signal: over.signal }).catch(() => undefined);
    }
  })();

  return {
    counts,
    heldEarly,
    async finish() {
      over.abort();
      await Promise.all([changing, looking]);
      for (const name of names) await flip(name, 'event');
      const done: string[] = [];
      for (const order of ['none', 'key'] as const) {
        const name = `${services.find((each) => each.order === order)!.name}-over`;
        // Calls that are still owed refuse it: the sweeper is given time.
        for (let tries = 0; tries < 60 && !done.includes(name); tries++) {
          await flip(name, 'done').then(
            () => done.push(name),
            (error: unknown) => (tries % 10 === 9 ? say(`${name} is not done yet: ${String(error)}`) : undefined),
          );
          if (!done.includes(name)) await delay(500);
        }
      }
      return done;
    },
  };
}
