export { mute } from './held-response.ts';
export { comparable, requestBody } from './request-body.ts';
export { throughGate } from './through-gate.ts';
export type { HttpExchange } from './through-gate.ts';
