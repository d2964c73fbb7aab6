/**
 * Anything that runs until it is stopped: a relay, a consumer, a sweeper.
 *
 * - `start` resolves once the service does its work (a standby relay counts as started), and rejects, with nothing left
 *   running, if it can't. Called again while starting or running, it starts nothing
 *   twice; called while stopping, it starts anew once that is done.
 * - `stop` asks it to finish what it holds and resolves when nothing of it runs any more. It never rejects, may be
 *   called at any time, also before or during `start`, and as often as one likes. A stopped service may be started again.
 * - `failed` resolves with the error if the running service ends by itself; it never rejects,
 *   keeps the error until the next `start`, and resolves with undefined after `stop`.
 */
export interface Service {
  readonly name: string;
  start(): Promise<void>;
  stop(): Promise<void>;
  failed(): Promise<unknown>;
}

/** The body of a service. It calls `ready` once it does its work, and returns soon after `signal` is aborted. */
export type Run = (signal: AbortSignal, ready: () => void) => Promise<void>;

interface Life {
  readonly abort: AbortController;
  readonly started: Promise<void>;
  readonly ended: Promise<unknown>;
  over: boolean;
}

/**
 * Makes a {@link Service} of a function; the rules of starting and stopping are kept here, once.
 *
 * @example
 * const ticker = service('ticker', async (signal, ready) => {
 *   ready();
 *   while (await sleep(1000, signal)) console.log('tick');
 * });
 */
export function service(name: string, run: Run): Service {
  let life: Life | undefined;

  function begin(): Life {
    const abort = new AbortController();
    let markReady: () => void = () => undefined;
    const ready = new Promise<void>((resolve) => {
      markReady = resolve;
    });
    // Deferred by one turn, so that a body that throws at once still fails the promise and not the caller.
    const running = Promise.resolve().then(() => run(abort.signal, markReady));
    const ended = running.then(
      () => undefined,
      (error: unknown) => (abort.signal.aborted ? undefined : error),
    );
    const started = Promise.race([ready, running]);
    started.catch(() => undefined);
    const current: Life = { abort, started, ended, over: false };
    void ended.then(() => {
      current.over = true;
    });
    return current;
  }

  return {
    name,
    async start() {
      // A start that comes while the last life still ends belongs to the next one.
      while (life !== undefined && life.abort.signal.aborted && !life.over) await life.ended;
      if (life === undefined || life.over) life = begin();
      return life.started;
    },
    async stop() {
      life?.abort.abort();
      await life?.ended;
    },
    async failed() {
      return life?.ended;
    },
  };
}

/** Runs several services as one: started in order, stopped in the opposite order; if one can't start, the others are stopped. */
export function together(name: string, services: readonly Service[]): Service {
  return service(name, async (signal, ready) => {
    const started: Service[] = [];
    const stopped = new Promise<undefined>((resolve) => {
      if (signal.aborted) resolve(undefined);
      else signal.addEventListener('abort', () => resolve(undefined), { once: true });
    });
    try {
      for (const each of services) {
        if (signal.aborted) return;
        // Before it is started: one that still waits for its database must be stopped too.
        started.push(each);
        await Promise.race([each.start(), stopped]);
      }
      ready();
      const failure = await Promise.race([...services.map(async (each) => ({ error: await each.failed() })), stopped]);
      if (failure !== undefined && !signal.aborted) throw failure.error;
    } finally {
      for (const each of started.reverse()) await each.stop();
    }
  });
}
