import type { Service } from '../../lifecycle/index.ts';
import { toJson } from '../output.ts';
import type { Io } from '../output.ts';

/**
 * Runs a service until it is asked to stop. Prints `<name>: ready` once it does its work, and `<name>: stopped` in the end; with --json
 * as JSON, a line each. Rejects if it can't start, or ends by itself.
 */
export async function runService(service: Service, io: Io): Promise<void> {
  const signal = io.stopSignal();
  const stop = new Promise<'stop'>((resolve) => {
    if (signal.aborted) resolve('stop');
    else signal.addEventListener('abort', () => resolve('stop'), { once: true });
  });
  try {
    // A service that waits for its database or broker may be asked to stop before it has started.
    const started = await Promise.race([service.start().then(() => 'started' as const), stop]);
    if (started === 'started') {
      tell(service, 'ready', io);
      const ended = await Promise.race([service.failed().then((error) => ({ error })), stop]);
      if (ended !== 'stop' && ended.error !== undefined)
        throw ended.error instanceof Error ? ended.error : new Error(String(ended.error));
    }
  } finally {
    await service.stop();
  }
  tell(service, 'stopped', io);
}

function tell({ name }: Service, state: 'ready' | 'stopped', { json, stdout }: Io): void {
  stdout(json === true ? `${toJson({ ok: true, service: name, state })}\n` : `${name}: ${state}\n`);
}
