/** How long the relay waits between polls, in milliseconds. */
export interface Pace {
  /** While nothing has come for `warmForMs`. */
  readonly idleMs: number;
  /** Shortly after there was work: the next event is likely to be near. */
  readonly warmMs: number;
  readonly warmForMs: number;
}

export const defaultPace: Pace = { idleMs: 25, warmMs: 3, warmForMs: 500 };

/** The wait before the next poll after an empty one; after one that found something there is none. */
export function waitAfterEmptyPollMs(pace: Pace, sinceWorkMs: number): number {
  return sinceWorkMs < pace.warmForMs ? pace.warmMs : pace.idleMs;
}
