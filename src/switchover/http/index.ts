export { brokenOff, tooLarge, tooSlow } from './given-up.ts';
export { bodyOf, comparable } from './request-body.ts';
export { throughGate } from './through-gate.ts';
export type { HttpExchange } from './through-gate.ts';
