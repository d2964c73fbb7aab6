export * from './errors/index.ts';
export * from './event/index.ts';
export * from './lifecycle/index.ts';
export * from './database/index.ts';
