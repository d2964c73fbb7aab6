export { switchedOver } from './switched-over.ts';
export type { ExpressMiddleware } from './switched-over.ts';
