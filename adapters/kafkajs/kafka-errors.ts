import { TurnoutError } from '../../src/errors/index.ts';
import type { ErrorCode } from '../../src/errors/index.ts';

const unreachable = new Set([
  'KafkaJSConnectionError',
  'KafkaJSConnectionClosedError',
  'KafkaJSBrokerNotFound',
  'KafkaJSRequestTimeoutError',
  'KafkaJSLockTimeout',
  'KafkaJSMetadataNotLoaded',
]);
// The broker answered, but not with what was asked: a leader is being elected, or too few replicas are in sync.
const notNow = new Set(['NOT_LEADER_FOR_PARTITION', 'LEADER_NOT_AVAILABLE', 'REQUEST_TIMED_OUT']);
const tooLarge = new Set(['MESSAGE_TOO_LARGE', 'RECORD_LIST_TOO_LARGE']);

/** The code of Turnout for an error of kafkajs, which nests the one that matters. */
export function codeOf(error: unknown): ErrorCode {
  for (let each = error; each instanceof Error; each = each.cause) {
    const { type, name } = each as { type?: unknown; name: string };
    if (typeof type === 'string') {
      if (tooLarge.has(type)) return 'TURNOUT_PAYLOAD_TOO_LARGE';
      if (type === 'UNKNOWN_TOPIC_OR_PARTITION') return 'TURNOUT_TOPIC_MISSING';
      if (notNow.has(type)) return 'TURNOUT_BROKER_UNREACHABLE';
    }
    if (unreachable.has(name)) return 'TURNOUT_BROKER_UNREACHABLE';
  }
  return 'TURNOUT_PUBLISH_FAILED';
}

export function asBrokerError(
  error: unknown,
  what: string,
  details: Readonly<Record<string, unknown>> = {},
  code: ErrorCode = codeOf(error),
): TurnoutError {
  if (error instanceof TurnoutError) return error;
  const reason = error instanceof Error ? error.message : String(error);
  return new TurnoutError(code, `${what}: ${reason}.`, { cause: error, details });
}
