import { createHash } from 'node:crypto';
import type { Route } from '../event/index.ts';

/** How far a consumer has moved: all calls; calls with the event path observed; some keys on events; all on events; for good. */
export type Stage = 'rpc' | 'shadow' | 'ramp' | 'event' | 'done';

export const stages = ['rpc', 'shadow', 'ramp', 'event', 'done'] as const satisfies readonly Stage[];

/** Stages that this version can set; the others are laid out and refused. */
export const availableStages: readonly Stage[] = ['rpc', 'event'];

/**
 * Where each stage may go. Every way back is open until `done`, which is final: then the old endpoint may be gone.
 * The same rules stand in turnout.set_stage, which decides.
 */
export const transitions: Readonly<Record<Stage, readonly Stage[]>> = {
  rpc: ['shadow', 'ramp', 'event'],
  shadow: ['rpc', 'ramp', 'event'],
  ramp: ['rpc', 'shadow', 'ramp', 'event'],
  event: ['rpc', 'shadow', 'ramp', 'done'],
  done: [],
};

/** Whether `text` names a stage. */
export function isStage(text: string): text is Stage {
  return (stages as readonly string[]).includes(text);
}

/** Whether a change leads forward: more events than before. Those need checks; the way back needs nothing. */
export function isPromotion(from: Stage, to: Stage): boolean {
  return stages.indexOf(to) > stages.indexOf(from);
}

/** What a switchover's row says about routes. */
export interface Routing {
  readonly stage: Stage;
  /** 0 to 100, to two places; counts only in `ramp`. */
  readonly percent: number;
  readonly salt: string;
}

/**
 * The route of one event under a stage: the same decision as `turnout.route_for` in SQL, which is the one that counts.
 * `key` is the event's key, or its id if it has none.
 */
export function routeFor({ stage, percent, salt }: Routing, key: string): Route {
  switch (stage) {
    case 'rpc':
    case 'shadow':
      return 'rpc';
    case 'ramp':
      // Rounded: 0.07 * 100 is 7.000000000000001, and SQL counts exactly.
      return rampBucket(salt, key) < Math.round(percent * 100) ? 'event' : 'rpc';
    case 'event':
    case 'done':
      return 'event';
  }
}

/** 0 … 9999, the same for ever for one (salt, key): a higher percentage only adds keys. Equal to `turnout.ramp_bucket`. */
export function rampBucket(salt: string, key: string): number {
  return createHash('md5').update(`${salt}:${key}`).digest().readUInt32BE(0) % 10_000;
}
