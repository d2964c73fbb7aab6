export { compareWith } from './compare-with.ts';
export type { CompareOptions, Comparison } from './compare-with.ts';
export { describeEffect } from './describe-effect.ts';
export { shadowReport } from './report.ts';
export type { ShadowGroup, ShadowReport, ShadowReportOptions } from './report.ts';
export { endpointShadow } from './shadowed-call.ts';
export type { ShadowedCall } from './shadowed-call.ts';
export { unwatchTable, waiveMismatch, watchTable } from './watch.ts';
export type { WatchedTable } from './writes.ts';
