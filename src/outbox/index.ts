export type { PublishRequest } from './prepare.ts';
export { lockKeys, publishEvents } from './publish.ts';
export type { DeclaredSwitchover, PublishedEvent, PublishedStamp, PublishOptions } from './publish.ts';
export { registerEvents } from './register.ts';
export { mayBeRepeated, runTransaction } from './run-transaction.ts';
