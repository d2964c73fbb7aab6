import type { PartSource } from './choice.ts';

/** A running part: PostgreSQL, Apache Kafka or Redis. */
export interface Part {
  readonly name: string;
  readonly version: string;
  readonly source: PartSource;
  /** Where a private instance writes its log. */
  readonly logFile: string | undefined;
  /** The server's process, for a private instance. */
  readonly pid: number | undefined;
  /** Stops a private instance and removes its data; does nothing to one from the environment. May be called twice. */
  stop(options?: { readonly keepLogs?: boolean }): Promise<void>;
  /** SIGKILLs a private instance; data and port stay, {@link restart} brings it back. */
  kill(): Promise<void>;
  /** Stops a private instance in an orderly way (if it runs) and starts it again on the same port with the same data. */
  restart(): Promise<void>;
}

export interface PartOptions {
  /** Told what is going on. By default lines go to stderr, and only when starting takes more than two seconds. */
  readonly onProgress?: (message: string) => void;
  /** Ask for a process of our own that can be killed and restarted, even when Docker or an address is at hand. */
  readonly restartable?: boolean;
}

/** Progress as it happens if asked for, else on stderr once the wait is long enough to be wondered at. */
export function progressTo(onProgress: ((message: string) => void) | undefined): {
  report: (message: string) => void;
  done: () => void;
} {
  if (onProgress) return { report: onProgress, done: () => {} };
  const print = (message: string): void => void process.stderr.write(`${message}\n`);
  let slow = false;
  let last: string | undefined;
  const timer = setTimeout(() => {
    slow = true;
    if (last !== undefined) print(last);
  }, 2_000);
  timer.unref();
  return {
    report(message) {
      last = message;
      if (slow) print(message);
    },
    done: () => clearTimeout(timer),
  };
}

/** `kill` and `restart` of a part that is not a process of ours. */
export function notOurs(name: string, source: PartSource): Pick<Part, 'kill' | 'restart' | 'pid' | 'logFile'> {
  const refuse = (): Promise<never> =>
    Promise.reject(new Error(`This ${name} is from ${source}: ask for { restartable: true } to kill or restart it.`));
  return { kill: refuse, restart: refuse, pid: undefined, logFile: undefined };
}
