import type { Service } from '../../src/lifecycle/index.ts';

/** Starts and stops a service from many sides at once, and leaves it stopped. Fails if a call never settles (the test's own deadline). */
export async function hammer(target: Service, options: { rounds: number }): Promise<void> {
  for (let round = 0; round < options.rounds; round++) {
    const calls = Array.from({ length: 6 }, () => (Math.random() < 0.5 ? target.start() : target.stop()));
    await Promise.all(calls);
  }
  await target.stop();
}
