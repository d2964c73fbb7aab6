export { enableFailpoint, failpoint } from './failpoints.ts';
export type { Failpoint } from './failpoints.ts';
export { jsonLogger, silentLogger } from './logger.ts';
export type { Logger } from './logger.ts';
export { service, together } from './service.ts';
export type { Run, Service } from './service.ts';
export { retryDelayMs, sleep } from './time.ts';
export type { RetryPolicy } from './time.ts';
