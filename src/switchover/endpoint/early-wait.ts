const longestPauseMs = 40;

/**
 * How long a call that came too early pauses before it looks again, in milliseconds. Pauses grow from 10 to 40, for what it waits for may
 * be quick; the last one ends with the wait, so that the last look is at its end. They are drawn (`random` in [0, 1)) from the upper
 * half: two calls of one key in step would see each other at every look, and both give up.
 */
export function pauseBeforeNextLook(look: number, leftMs: number, random: number): number {
  const longest = Math.min(longestPauseMs, 10 * 2 ** Math.min(look, 10));
  return Math.min(longest * (0.5 + random / 2), Math.max(leftMs, 1));
}
