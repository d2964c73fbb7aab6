// What goes wrong: processes are killed and paused all the time, PostgreSQL and Kafka are restarted twice each, the network is bad.
import { setTimeout as delay } from 'node:timers/promises';
import type { Kind } from './fleet.ts';
import type { World } from './world.ts';

export interface FaultCounts {
  shopKills: number;
  endpointKills: number;
  consumerKills: number;
  consumerPauses: number;
  runKills: number;
  runPauses: number;
  postgresRestarts: number;
  kafkaRestarts: number;
}

export interface Faults {
  readonly counts: FaultCounts;
  /** Ends them, and waits until everything that was ended is back. */
  stop(): Promise<void>;
}

/** Processes that are away at one time; some of each kind stay. */
const mostAtOnce = 3;

export function startFaults(world: World, random: () => number, seconds: number, say: (text: string) => void): Faults {
  const counts: FaultCounts = {
    shopKills: 0,
    endpointKills: 0,
    consumerKills: 0,
    consumerPauses: 0,
    runKills: 0,
    runPauses: 0,
    postgresRestarts: 0,
    kafkaRestarts: 0,
  };
  const over = new AbortController();
  const sleep = (ms: number): Promise<unknown> => delay(ms, undefined, { signal: over.signal }).catch(() => undefined);
  for (const network of Object.values(world.networks)) network.bad = true;

  const kill = (kind: Kind) => async (): Promise<void> => {
    if (await world.fleet.kill(kind)) counts[`${kind}Kills`]++;
  };
  const pause = (kind: 'consumer' | 'run') => async (): Promise<void> => {
    // Beyond the session's six seconds, and beyond the standby's patience of three.
    if (await world.fleet.pause(kind, kind === 'consumer' ? 9_000 : 5_000)) counts[`${kind}Pauses`]++;
  };
  const processFaults = [
    kill('shop'),
    kill('endpoint'),
    kill('consumer'),
    pause('consumer'),
    kill('run'),
    pause('run'),
  ];

  const processes = (async () => {
    const underWay = new Set<Promise<void>>();
    // In turn, so that each kind happens in a short run as well; the next before the last one is back, but not all at once.
    for (let n = 0; !over.signal.aborted; n++) {
      await sleep(1_500 + random() * 2_500);
      while (underWay.size >= mostAtOnce) await Promise.race(underWay);
      if (over.signal.aborted) break;
      const one = processFaults[n % processFaults.length]!().finally(() => underWay.delete(one));
      underWay.add(one);
    }
    await Promise.all(underWay);
  })();

  const restart = async (part: 'postgres' | 'kafka'): Promise<void> => {
    say(`Restarting ${part}`);
    // Killed, and away for a moment.
    await world[part].kill();
    await delay(500 + random() * 1_500);
    await world[part].restart();
    counts[`${part}Restarts`]++;
  };
  const parts = (async () => {
    const moments = [
      [0.2, 'postgres'],
      [0.4, 'kafka'],
      [0.6, 'postgres'],
      [0.8, 'kafka'],
    ] as const;
    const began = performance.now();
    for (const [share, part] of moments) {
      await sleep(began + share * seconds * 1_000 - performance.now());
      if (over.signal.aborted) return;
      await restart(part);
    }
  })();
  const tending = (async () => {
    while (!over.signal.aborted) {
      await sleep(2_000);
      await world.fleet.tend();
    }
  })();

  return {
    counts,
    async stop() {
      over.abort();
      await Promise.all([processes, parts, tending]);
      for (const network of Object.values(world.networks)) network.bad = false;
    },
  };
}
