// The processes of one run. Each can be killed or paused at any moment, and comes back with the same arguments.
import { setTimeout as delay } from 'node:timers/promises';
import { spawnNode } from '../../support/index.ts';
import type { NodeProcess } from '../../support/index.ts';

export type Kind = 'shop' | 'endpoint' | 'consumer' | 'run';

interface Member {
  readonly name: string;
  readonly kind: Kind;
  readonly argument: object;
  process: NodeProcess;
  /** Being killed, paused or started: left alone by others. */
  busy: boolean;
}

export interface Fleet {
  /** Starts a process; resolves when it is ready. */
  start(kind: Kind, name: string, argument: object): Promise<void>;
  /** SIGKILL, and again after a while. Gives false if none of the kind was there to be hit. */
  kill(kind: Kind): Promise<boolean>;
  /** SIGSTOP for so long, in milliseconds. */
  pause(kind: Kind, ms: number): Promise<boolean>;
  /** Starts whatever has ended by itself, and tells what it said of it. */
  tend(): Promise<void>;
  /** Why processes ended by themselves, if any did. */
  readonly ended: readonly string[];
  outputs(): { readonly name: string; readonly output: string }[];
  stop(): Promise<void>;
}

export function fleet(random: () => number, environment: Readonly<Record<string, string>>): Fleet {
  const members: Member[] = [];
  const past: { name: string; output: string }[] = [];
  const ended: string[] = [];
  let stopping = false;

  function spawn(kind: Kind, argument: object): NodeProcess {
    return spawnNode(new URL(`./${kind}-process.ts`, import.meta.url), [JSON.stringify(argument)], environment);
  }

  /** One that waits for a database or broker that is away at the moment is given time. */
  async function ready(process: NodeProcess): Promise<void> {
    await process.line(/^ready$/, { deadlineMs: 120_000 }).catch((error: unknown) => {
      if (!stopping) throw error;
    });
  }

  function victim(kind: Kind): Member | undefined {
    const candidates = members.filter((each) => each.kind === kind && !each.busy);
    return candidates[Math.floor(random() * candidates.length)];
  }

  async function revive(member: Member): Promise<void> {
    past.push({ name: member.name, output: member.process.output });
    if (stopping) return;
    member.process = spawn(member.kind, member.argument);
    await ready(member.process);
  }

  return {
    ended,
    async start(kind, name, argument) {
      const member: Member = { name, kind, argument, process: spawn(kind, argument), busy: true };
      members.push(member);
      await ready(member.process);
      member.busy = false;
    },
    async kill(kind) {
      const member = victim(kind);
      if (member === undefined) return false;
      member.busy = true;
      try {
        await member.process.kill('SIGKILL');
        await delay(200 + random() * 1_500);
        await revive(member);
      } finally {
        member.busy = false;
      }
      return true;
    },
    async pause(kind, ms) {
      const member = victim(kind);
      if (member === undefined) return false;
      member.busy = true;
      try {
        member.process.signal('SIGSTOP');
        await delay(ms);
        member.process.signal('SIGCONT');
      } finally {
        member.busy = false;
      }
      return true;
    },
    async tend() {
      for (const member of members) {
        if (member.busy || stopping) continue;
        const over = await Promise.race([member.process.exited, Promise.resolve(undefined)]);
        const halted = /^halted .*$/m.exec(member.process.output)?.[0];
        if (over === undefined && halted === undefined) continue;
        member.busy = true;
        ended.push(`${member.name}: ${halted ?? member.process.output.slice(-500)}`);
        await member.process.kill('SIGKILL');
        await revive(member).finally(() => (member.busy = false));
      }
    },
    outputs: () => [...past, ...members.map(({ name, process }) => ({ name, output: process.output }))],
    async stop() {
      stopping = true;
      for (const { process } of members) process.signal('SIGCONT');
      await Promise.all(members.map(({ process }) => process.kill('SIGKILL')));
    },
  };
}
