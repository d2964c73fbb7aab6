import { retryDelayMs, silentLogger, sleep } from '../../lifecycle/index.ts';
import type { Logger, RetryPolicy } from '../../lifecycle/index.ts';
import type { Breach } from './guardrails.ts';
import type { Stage } from '../stage.ts';

/** What somebody has to know of a switchover. Plain JSON. */
export interface Alert {
  /** The same for the same cause, whichever process tells it: receivers can drop repeats by it. */
  readonly id: string;
  /**
   * `stepped-back`: a guardrail was breached, and the stage was set back. `breached`: one was, and nothing was done (stage
   * shadow, or the way back was refused). `blind`: the consumer can't be looked at. `sighted`: it can again.
   */
  readonly kind: 'stepped-back' | 'breached' | 'blind' | 'sighted';
  readonly source: string;
  readonly switchover: string;
  readonly consumer: string;
  /** The stage in which it happened, and its epoch. */
  readonly stage: Stage;
  readonly epoch: number;
  /** Where it was set back to; only with `stepped-back`. */
  readonly to?: Stage;
  /** ISO, by the clock of the process that tells. */
  readonly at: string;
  readonly why: string;
  readonly breaches: readonly Breach[];
}

/** Whoever is to be told: `onAlert` of the configuration. What it does must not hold up anything, and nothing waits for it. */
export type OnAlert = (alert: Alert) => void | Promise<void>;

export interface WebhookOptions {
  readonly headers?: Readonly<Record<string, string>>;
  /** Longest time for one attempt, in milliseconds. Default 5,000. */
  readonly timeoutMs?: number;
  /** Default: 5 attempts, 1 s to 30 s apart. */
  readonly retry?: Partial<RetryPolicy>;
  /** What to send; by default the alert as JSON. */
  readonly body?: (alert: Alert) => unknown;
  readonly logger?: Logger;
}

const defaultRetry: RetryPolicy = { attempts: 5, firstDelayMs: 1_000, maxDelayMs: 30_000 };

/**
 * Posts alerts as JSON. An attempt that takes too long, or is answered with 408, 429 or 5xx, is made again; any other 4xx is for
 * good. Both are logged. It never rejects, and nobody waits for it.
 *
 * @example
 * export default defineConfig({ …, onAlert: webhook('https://hooks.example.org/turnout', { headers: { authorization: `Bearer ${token}` } }) });
 */
export function webhook(url: string | URL, options: WebhookOptions = {}): OnAlert {
  const { headers = {}, timeoutMs = 5_000, body = (alert) => alert, logger = silentLogger } = options;
  const retry = { ...defaultRetry, ...options.retry };

  /** Undefined: it was received. */
  async function post(text: string): Promise<{ readonly problem: string; readonly forGood: boolean } | undefined> {
    try {
      const response = await fetch(url, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: text,
        redirect: 'error',
        signal: AbortSignal.timeout(timeoutMs),
      });
      // Only the status counts; a body that is not read would keep the connection.
      await response.body?.cancel();
      const { status } = response;
      if (status < 400) return undefined;
      return { problem: `it answered ${status}`, forGood: status < 500 && status !== 408 && status !== 429 };
    } catch (error) {
      return { problem: error instanceof Error ? error.message : String(error), forGood: false };
    }
  }

  return async (alert) => {
    const fields = { alert: alert.id, kind: alert.kind, switchover: alert.switchover };
    const text = JSON.stringify(body(alert));
    for (let attempt = 1; ; attempt++) {
      const failure = await post(text);
      if (failure === undefined) return;
      if (failure.forGood || attempt >= retry.attempts) {
        logger.error('An alert could not be delivered.', { ...fields, attempt, problem: failure.problem });
        return;
      }
      const delayMs = retryDelayMs(retry, attempt, Math.random());
      logger.warn('An alert was not received; it is sent again.', {
        ...fields,
        attempt,
        delayMs,
        problem: failure.problem,
      });
      await sleep(delayMs);
    }
  };
}
