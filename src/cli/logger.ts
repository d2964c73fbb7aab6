import { jsonLogger } from '../lifecycle/index.ts';
import type { Logger } from '../lifecycle/index.ts';
import { toJson } from './output.ts';
import type { Io } from './output.ts';

/** Log lines on standard error: text where a person reads them, else one JSON object a line. */
export function loggerFor(io: Io): Logger {
  if (!io.interactive) return jsonLogger;
  const write =
    (level: string) =>
    (message: string, fields: Readonly<Record<string, unknown>> = {}): void => {
      const details = Object.entries(fields).map(
        ([name, value]) =>
          `${name}=${value instanceof Error ? value.message : typeof value === 'string' ? value : toJson(value)}`,
      );
      io.stderr(`${new Date().toISOString().slice(11, 23)} ${level.padEnd(5)} ${[message, ...details].join('  ')}\n`);
    };
  return { info: write('info'), warn: write('warn'), error: write('error') };
}
