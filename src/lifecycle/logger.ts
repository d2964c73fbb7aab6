/** Where Turnout writes what an operator should know. `console` fits; so does pino with its arguments turned around. */
export interface Logger {
  info(message: string, fields?: Readonly<Record<string, unknown>>): void;
  warn(message: string, fields?: Readonly<Record<string, unknown>>): void;
  error(message: string, fields?: Readonly<Record<string, unknown>>): void;
}

/** Says nothing. */
export const silentLogger: Logger = { info: () => undefined, warn: () => undefined, error: () => undefined };

/** One JSON object a line on standard error: standard output stays free for what a command prints. */
export const jsonLogger: Logger = {
  info: (message, fields) => writeLine('info', message, fields),
  warn: (message, fields) => writeLine('warn', message, fields),
  error: (message, fields) => writeLine('error', message, fields),
};

function writeLine(level: string, message: string, fields: Readonly<Record<string, unknown>> = {}): void {
  process.stderr.write(
    `${JSON.stringify({ time: new Date().toISOString(), level, message, ...fields }, errorsAsText)}\n`,
  );
}

function errorsAsText(_key: string, value: unknown): unknown {
  if (value instanceof Error) return { message: value.message, ...('code' in value ? { code: value.code } : {}) };
  return typeof value === 'bigint' ? value.toString() : value;
}
