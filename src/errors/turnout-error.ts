import { errorKinds } from './registry.ts';
import type { ErrorCode, ErrorKind } from './registry.ts';

/** Plain data about an error: what a program may want to show or count. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

/**
 * The one error class of Turnout. The message says what happened, then what to do.
 *
 * @example
 * try {
 *   await turnout.publish(tx, OrderPlaced, order);
 * } catch (error) {
 *   if (isTurnoutError(error, 'TURNOUT_EVENT_DATA_INVALID')) console.error(error.details['path']);
 *   throw error;
 * }
 */
export class TurnoutError extends Error {
  override readonly name = 'TurnoutError';
  readonly code: ErrorCode;
  /** Whether the same attempt may succeed later. */
  readonly retryable: boolean;
  readonly details: ErrorDetails;

  constructor(code: ErrorCode, what: string, options: { details?: ErrorDetails; cause?: unknown } = {}) {
    const kind: ErrorKind = errorKinds[code];
    super(`${what} ${kind.remedy}`, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.retryable = kind.retryable;
    this.details = options.details ?? {};
  }
}

/** For something that was defined wrongly: TURNOUT_DEFINITION_INVALID, with the path of what is wrong. */
export function invalidDefinition(path: string, what: string): TurnoutError {
  return new TurnoutError('TURNOUT_DEFINITION_INVALID', what, { details: { path } });
}

/** Whether `error` is Turnout's, and, if a code is given, has that code. */
export function isTurnoutError(error: unknown, code?: ErrorCode): error is TurnoutError {
  return error instanceof TurnoutError && (code === undefined || error.code === code);
}

const codeBySqlState = new Map<string, ErrorCode>();
for (const [code, kind] of Object.entries(errorKinds) as [ErrorCode, ErrorKind][]) {
  if (kind.sqlState !== undefined) codeBySqlState.set(kind.sqlState, code);
}

/** The code of an SQLSTATE of Turnout's SQL functions; undefined for all others. */
export function codeOfSqlState(sqlState: string): ErrorCode | undefined {
  return codeBySqlState.get(sqlState);
}

/** What Turnout reads of a database driver's error; `pg` and TypeORM (through `driverError`) fit. */
interface DatabaseErrorLike {
  readonly code?: unknown;
  readonly message?: unknown;
  readonly detail?: unknown;
  readonly driverError?: unknown;
}

/** Turns an error that Turnout's SQL functions raised into a {@link TurnoutError}; gives every other one back as it is. */
export function fromDatabaseError(error: unknown): unknown {
  if (typeof error !== 'object' || error === null || error instanceof TurnoutError) return error;
  const { code: sqlState, message, detail, driverError } = error as DatabaseErrorLike;
  const code = typeof sqlState === 'string' ? codeBySqlState.get(sqlState) : undefined;
  if (code === undefined) return driverError === undefined ? error : fromWrapped(driverError, error);
  return new TurnoutError(code, String(message), { details: parseDetail(detail), cause: error });
}

function fromWrapped(inner: unknown, outer: unknown): unknown {
  const translated = fromDatabaseError(inner);
  return translated instanceof TurnoutError ? translated : outer;
}

function parseDetail(detail: unknown): ErrorDetails {
  if (typeof detail !== 'string') return {};
  try {
    const parsed: unknown = JSON.parse(detail);
    return typeof parsed === 'object' && parsed !== null ? (parsed as ErrorDetails) : {};
  } catch {
    return { detail };
  }
}
