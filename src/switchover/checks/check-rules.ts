// The limits that checks are held against, and what they may be.
import { TurnoutError } from '../../errors/index.ts';

/** Limits of the checks, for one switchover: `defineSwitchover({ …, checks: { … } })`. */
export interface CheckRules {
  /** Most events that the consumer may be behind, over all partitions. Default 100. */
  readonly maxLag?: number;
  /** How old the oldest event that the consumer has not read may be, in milliseconds. Default 60,000. */
  readonly maxIdleMs?: number;
  /** For how long an event may be held without being parked, early or behind another, in milliseconds. Default 60,000. */
  readonly maxHeldMs?: number;
  /** Fewest deliveries that shadow must have seen. Default 100. */
  readonly minDeliveries?: number;
  /** The delay that 99 % of the deliveries in shadow keep, in milliseconds. Default 30,000. */
  readonly maxDelayMs?: number;
  /** Largest share of decisions that may differ, in percent, by its 95 % upper bound. Default 1, which takes 299 comparisons without a difference. */
  readonly maxMismatchPercent?: number;
  /** Whether decisions must have been compared; by default they count only if they were. */
  readonly decisions?: 'when-compared' | 'required';
  /** Variants (as the shadow names them) of which each must have been compared at least once. Default: none. */
  readonly variants?: readonly string[];
  /** From `ramp` on: fewest events that must have had their effect since the stage was set. Default 20. */
  readonly minEffects?: number;
  /** From `ramp` on: largest share of events that were rejected or skipped, in percent, by its 95 % lower bound. Default 25. */
  readonly maxRejectedPercent?: number;
  /** Most calls that may be failing at the producer. Default 0. */
  readonly maxFailingCalls?: number;
  /** For `done`: days in stage `event`, with no caller that does not come through Turnout. Default 7. */
  readonly quietDays?: number;
}

export const defaultCheckRules: Required<CheckRules> = {
  maxLag: 100,
  maxIdleMs: 60_000,
  maxHeldMs: 60_000,
  minDeliveries: 100,
  maxDelayMs: 30_000,
  maxMismatchPercent: 1,
  decisions: 'when-compared',
  variants: [],
  minEffects: 20,
  maxRejectedPercent: 25,
  maxFailingCalls: 0,
  quietDays: 7,
};

/** Refuses rules that can't be meant. Throws TURNOUT_SWITCHOVER_INVALID with the path of the bad field. */
export function validateCheckRules(switchover: string, rules: CheckRules): void {
  for (const [name, value] of Object.entries(rules) as [string, unknown][]) {
    const path = `checks.${name}`;
    const fits =
      name === 'decisions'
        ? value === 'when-compared' || value === 'required'
        : name === 'variants'
          ? Array.isArray(value) && value.every((each) => typeof each === 'string')
          : Object.hasOwn(defaultCheckRules, name) && typeof value === 'number' && value >= 0 && Number.isFinite(value);
    if (fits) continue;
    throw new TurnoutError(
      'TURNOUT_SWITCHOVER_INVALID',
      `Switchover ${switchover} can't have ${path} ${JSON.stringify(value)}.`,
      {
        details: { switchover, path },
      },
    );
  }
}
