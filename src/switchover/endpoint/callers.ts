// Who calls a wrapped endpoint: whoever comes without Turnout's headers would break when the endpoint is deleted. Counted in memory and
// written each second at most, beside the calls: the old endpoint is not slowed, and a database that is away costs it nothing.
import type { Queryable } from '../../database/index.ts';
import { silentLogger } from '../../lifecycle/index.ts';
import type { Logger } from '../../lifecycle/index.ts';

/** A call as it is counted. */
export interface NotedCall {
  /** Whether it came with Turnout's headers. */
  readonly keyed: boolean;
  readonly endpoint: string | undefined;
  /** Counts only without headers. */
  readonly service?: string | undefined;
  readonly address?: string | undefined;
}

export interface CallerRecorder {
  /** Counts a call; never throws, and waits for nothing. */
  note(call: NotedCall): void;
  /** Writes what was counted; never rejects. Called by itself a second after a call. */
  flush(): Promise<void>;
}

interface Counted {
  readonly endpoint: string;
  readonly service: string;
  readonly address: string;
  calls: number;
  at: number;
}

interface Seen {
  keyedAt: number | undefined;
  unkeyedAt: number | undefined;
}

/** More different callers than this, between two writes, are counted as one. */
const mostCallers = 1_000;
const flushAfterMs = 1_000;
/** While they can't be written. */
const retryAfterMs = 30_000;

export function callerRecorder(
  database: Queryable,
  consumer: string,
  { logger = silentLogger, now = () => performance.now() }: { logger?: Logger; now?: () => number } = {},
): CallerRecorder {
  let callers = new Map<string, Counted>();
  let endpoints = new Map<string, Seen>();
  let timer: NodeJS.Timeout | undefined;

  function schedule(ms: number): void {
    timer ??= setTimeout(() => void flush(), ms).unref();
  }

  function count(endpoint: string, service: string, address: string, calls: number, at: number): void {
    const name = JSON.stringify([endpoint, service, address]);
    const known = callers.get(name);
    if (known !== undefined) {
      known.calls += calls;
      known.at = Math.max(known.at, at);
    } else if (callers.size < mostCallers) callers.set(name, { endpoint, service, address, calls, at });
    else if (service !== others) count('', others, others, calls, at);
    else callers.set(name, { endpoint, service, address, calls, at });
  }

  function see(endpoint: string, { keyedAt, unkeyedAt }: Seen): void {
    const known = endpoints.get(endpoint);
    if (known !== undefined) {
      known.keyedAt = keyedAt ?? known.keyedAt;
      known.unkeyedAt = unkeyedAt ?? known.unkeyedAt;
    } else if (endpoints.size < mostCallers) endpoints.set(endpoint, { keyedAt, unkeyedAt });
  }

  async function flush(): Promise<void> {
    clearTimeout(timer);
    timer = undefined;
    if (endpoints.size === 0) return;
    const [writing, seen] = [callers, endpoints];
    callers = new Map();
    endpoints = new Map();
    const age = (at: number | undefined): number | undefined =>
      at === undefined ? undefined : Math.max(0, now() - at);
    try {
      await database.query('select turnout.record_callers($1, $2::jsonb, $3::jsonb)', [
        consumer,
        JSON.stringify([...writing.values()].map(({ at, ...each }) => ({ ...each, ageMs: age(at) }))),
        JSON.stringify(
          [...seen].map(([endpoint, { keyedAt, unkeyedAt }]) => ({
            endpoint,
            keyedAgeMs: age(keyedAt),
            unkeyedAgeMs: age(unkeyedAt),
          })),
        ),
      ]);
    } catch (error) {
      logger.warn('Who calls the endpoint could not be written; it is tried again.', { consumer, error });
      for (const each of writing.values()) count(each.endpoint, each.service, each.address, each.calls, each.at);
      for (const [endpoint, each] of seen) see(endpoint, each);
      schedule(retryAfterMs);
    }
  }

  return {
    flush,
    note({ keyed, endpoint, service, address }) {
      const [at, name] = [now(), text(endpoint)];
      if (!keyed) count(name, text(service), text(address), 1, at);
      see(name, keyed ? { keyedAt: at, unkeyedAt: undefined } : { keyedAt: undefined, unkeyedAt: at });
      schedule(flushAfterMs);
    },
  };
}

const others = '(others)';

/** What a caller says of itself may be anything: bounded, and without what Postgres can't keep. */
function text(value: unknown): string {
  return typeof value === 'string' ? value.slice(0, 200).replaceAll('\0', '').toWellFormed() : '';
}
