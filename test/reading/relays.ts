// Relay processes that are kept alive, and, while the schedule says so, killed and paused.
import { spawnNode } from '../support/index.ts';
import type { NodeProcess } from '../support/index.ts';
import { between, random } from './random.ts';
import type { RelayProcessOptions } from './relay-process.ts';
import type { Scenario } from './scenarios.ts';

/** What happened to the relays and what they saw, by kind. */
export interface RelayFaults {
  relayKills: number;
  relayPauses: number;
  failedSends: number;
  takeovers: number;
  replays: number;
}

export interface Fleet {
  start(): void;
  /** No more kills and pauses from now on. */
  calm(): void;
  /** The code with which a relay ended by itself, if one did: it is not started again. */
  ended(): string | undefined;
  faults(): RelayFaults;
  stop(): Promise<void>;
}

interface Slot {
  process: NodeProcess;
  leading: boolean;
  ready: boolean;
  paused: boolean;
}

const relayProcess = new URL('./relay-process.ts', import.meta.url);

export function relays(options: { url: string; brokers: readonly string[]; seed: number; scenario: Scenario }): Fleet {
  const { scenario, seed } = options;
  const faults: RelayFaults = { relayKills: 0, relayPauses: 0, failedSends: 0, takeovers: 0, replays: 0 };
  const slots: Slot[] = [];
  const next = random(seed + 77);
  let started = 0;
  let stopping = false;
  let calm = !scenario.chaos;
  let endedBy: string | undefined;
  let timer: NodeJS.Timeout | undefined;

  function spawn(): NodeProcess {
    const { takeoverMs, pageSize, failingSends, dieAfterSends, blind } = scenario;
    const settings: RelayProcessOptions = {
      url: options.url,
      brokers: options.brokers,
      seed: seed * 1_000 + ++started,
      takeoverMs,
      pageSize,
      failingSends,
      ...(dieAfterSends === undefined || calmed() ? {} : { dieAfterSends }),
      ...(blind === undefined ? {} : { blind }),
    };
    return spawnNode(relayProcess, [JSON.stringify(settings)], { TURNOUT_FAILPOINTS: scenario.failpoints.join(',') });
  }

  // A schedule in which relays kill themselves ends, or nothing would ever be published to the end.
  function calmed(): boolean {
    return started > 12;
  }

  function keep(index: number): void {
    const slot: Slot = { process: spawn(), leading: false, ready: false, paused: false };
    slots[index] = slot;
    void follow(slot);
    void slot.process.exited.then(() => {
      if (!stopping && endedBy === undefined) keep(index);
    });
  }

  async function follow(slot: Slot): Promise<void> {
    for (;;) {
      const line = await slot.process
        .line(/^(ready|event|ended) ?(.*)$/, { deadlineMs: 600_000 })
        .catch(() => undefined);
      if (line === undefined) return;
      const [, word, rest = ''] = line;
      if (word === 'ready') slot.ready = true;
      if (word === 'ended' && !stopping) endedBy = `a relay ended with ${rest}`;
      if (word !== 'event') continue;
      const event = JSON.parse(rest) as { kind: string; takeover?: boolean; replayed?: boolean };
      if (event.kind === 'leading') slot.leading = true;
      if (event.kind === 'stepped-down' || event.kind === 'standing-by') slot.leading = false;
      if (event.kind === 'leading' && event.takeover === true) faults.takeovers++;
      if (event.kind === 'tick' && event.replayed === true) faults.replays++;
      if (event.kind === 'failed-send') faults.failedSends++;
    }
  }

  /** Mostly the leader; now and then it is only paused, for longer than its standby is patient. */
  function strike(): void {
    if (stopping || calm) return;
    const ready = slots.filter((slot) => slot.ready && !slot.paused);
    const victim =
      next() < 0.8 ? (ready.find((slot) => slot.leading) ?? ready[0]) : ready[Math.floor(next() * ready.length)];
    if (victim !== undefined) {
      if (next() < 0.2) {
        faults.relayPauses++;
        victim.paused = true;
        victim.process.signal('SIGSTOP');
        setTimeout(() => {
          victim.process.signal('SIGCONT');
          victim.paused = false;
        }, scenario.takeoverMs * 1.5);
      } else {
        faults.relayKills++;
        void victim.process.kill('SIGKILL');
      }
    }
    timer = setTimeout(strike, between(next, 300, 1_800));
  }

  return {
    start() {
      for (let index = 0; index < scenario.relayProcesses; index++) keep(index);
      if (!calm) timer = setTimeout(strike, 1_000);
    },
    calm() {
      calm = true;
      clearTimeout(timer);
    },
    ended: () => endedBy,
    faults: () => ({ ...faults }),
    async stop() {
      stopping = true;
      clearTimeout(timer);
      await Promise.all(
        slots.map(async ({ process }) => {
          process.signal('SIGCONT');
          const late = setTimeout(() => process.signal('SIGKILL'), 10_000);
          await process.kill('SIGTERM');
          clearTimeout(late);
        }),
      );
    },
  };
}
