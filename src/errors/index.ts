export { errorKinds } from './registry.ts';
export type { ErrorCode, ErrorKind } from './registry.ts';
export { TurnoutError, codeOfSqlState, fromDatabaseError, invalidDefinition, isTurnoutError } from './turnout-error.ts';
export type { ErrorDetails } from './turnout-error.ts';
