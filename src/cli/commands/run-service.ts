import type { Service } from '../../lifecycle/index.ts';
import type { Io } from '../output.ts';

/**
 * Runs a service until it is asked to stop, and prints `<name>: ready` once it does its work. Rejects if it can't start,
 * or ends by itself.
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
    if (started === 'stop') return;
    io.stdout(`${service.name}: ready\n`);
    const ended = await Promise.race([service.failed().then((error) => ({ error })), stop]);
    if (ended !== 'stop' && ended.error !== undefined)
      throw ended.error instanceof Error ? ended.error : new Error(String(ended.error));
  } finally {
    await service.stop();
  }
  io.stdout(`${service.name}: stopped\n`);
}
