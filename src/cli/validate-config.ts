import type { TurnoutConfig } from '../config.ts';
import { TurnoutError } from '../errors/index.ts';
import { isName } from '../event/index.ts';

const shape: Readonly<Record<keyof TurnoutConfig, (value: unknown) => string | undefined>> = {
  source: (value) =>
    typeof value === 'string' && isName(value) ? undefined : 'is not a name: lower case letters, digits, dots, dashes',
  database: (value) =>
    hasMethods(value, ['connect', 'query', 'transaction', 'within'])
      ? undefined
      : 'is not a database: use pgDatabase(pool) or typeOrmDatabase(dataSource)',
  broker: (value) =>
    hasMethods(value, ['publisher', 'source', 'topics']) ? undefined : 'is not a broker: use kafkaJs(kafka)',
  events: (value) =>
    listOf(
      value,
      (each) => has(each, 'name') && has(each, 'topic') && has(each, 'schema'),
      'an event: use defineEvent',
    ),
  switchovers: (value) =>
    listOf(
      value,
      (each) => has(each, 'name') && has(each, 'consumer') && has(each, 'rpc'),
      'a switchover: use defineSwitchover',
    ),
  consumers: (value) =>
    listOf(
      value,
      (each) => has(each, 'name') && has(each, 'database') && has(each, 'handlers'),
      'a consumer: use defineConsumer',
    ),
  consumerDatabases: (value) =>
    recordOf(value, (each) => hasMethods(each, ['query']), 'a database: use pgDatabase(pool)'),
  evidence: (value) => recordOf(value, (each) => typeof each === 'function', 'a function'),
  onAlert: (value) => (typeof value === 'function' ? undefined : 'is not a function'),
  bridges: (value) =>
    listOf(
      value,
      (each) => has(each, 'name') && has(each, 'bridge') && has(each, 'handlers'),
      'a bridge: use defineBridge',
    ),
  proxies: (value) =>
    listOf(
      value,
      (each) => has(each, 'name') && has(each, 'target') && has(each, 'routes'),
      'a proxy: use defineProxy',
    ),
  close: (value) => (typeof value === 'function' ? undefined : 'is not a function'),
};

/** Checks what a configuration module exports; throws TURNOUT_CONFIG_INVALID with the path of the bad field. */
export function validateConfig(value: unknown, file: string): TurnoutConfig {
  if (typeof value !== 'object' || value === null) {
    throw invalid(file, 'default', 'does not export a configuration: `export default defineConfig({ … })`');
  }
  for (const [field, member] of Object.entries(value)) {
    if (!Object.hasOwn(shape, field))
      throw invalid(file, field, `has the unknown field ${field} (known: ${Object.keys(shape).join(', ')})`);
    const wrong = member === undefined ? undefined : shape[field as keyof TurnoutConfig](member);
    if (wrong !== undefined) throw invalid(file, field, `${field} ${wrong}`);
  }
  const config = value as TurnoutConfig;
  if (config.source !== undefined) {
    if (config.database === undefined)
      throw invalid(file, 'database', 'names a source but no database that holds its outbox');
    if (config.events === undefined)
      throw invalid(file, 'events', 'names a source but not the events that it publishes');
  }
  if (config.switchovers !== undefined && config.source === undefined) {
    throw invalid(file, 'source', 'has switchovers but names no source: they belong to the service that publishes');
  }
  refuseTwice(
    file,
    'events',
    config.events?.map((event) => `${event.name} v${event.version}`),
  );
  refuseTwice(
    file,
    'switchovers',
    config.switchovers?.map((switchover) => switchover.name),
  );
  refuseTwice(
    file,
    'consumers',
    // A bridge is a group at the broker as well.
    [...(config.consumers ?? []), ...(config.bridges ?? [])].map((consumer) => consumer.name),
  );
  refuseTwice(
    file,
    'proxies',
    config.proxies?.map((proxy) => proxy.name),
  );
  return config;
}

/** The fields that a command needs; throws TURNOUT_CONFIG_INVALID for the first that is missing. */
export function need<Field extends keyof TurnoutConfig>(
  config: TurnoutConfig,
  command: string,
  ...fields: readonly Field[]
): TurnoutConfig & { readonly [Name in Field]-?: NonNullable<TurnoutConfig[Name]> } {
  for (const field of fields) {
    if (config[field] === undefined) {
      throw new TurnoutError(
        'TURNOUT_CONFIG_INVALID',
        `\`turnout ${command}\` needs \`${field}\` in the configuration.`,
        {
          details: { path: field, command },
        },
      );
    }
  }
  return config as TurnoutConfig & { readonly [Name in Field]-?: NonNullable<TurnoutConfig[Name]> };
}

function refuseTwice(file: string, field: string, names: readonly string[] = []): void {
  const twice = names.find((name, index) => names.indexOf(name) !== index);
  if (twice !== undefined) throw invalid(file, field, `${field} lists ${twice} twice`);
}

function listOf(value: unknown, fits: (each: unknown) => boolean, what: string): string | undefined {
  if (!Array.isArray(value)) return 'is not an array';
  const index = value.findIndex((each) => !fits(each));
  return index === -1 ? undefined : `has at place ${index} something that is not ${what}`;
}

function recordOf(value: unknown, fits: (each: unknown) => boolean, what: string): string | undefined {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return 'is not an object';
  const wrong = Object.entries(value).find(([, each]) => !fits(each));
  return wrong === undefined ? undefined : `has under ${wrong[0]} something that is not ${what}`;
}

function has(value: unknown, field: string): boolean {
  return typeof value === 'object' && value !== null && field in value;
}

function hasMethods(value: unknown, names: readonly string[]): boolean {
  return names.every((name) => has(value, name) && typeof (value as Record<string, unknown>)[name] === 'function');
}

function invalid(file: string, path: string, what: string): TurnoutError {
  return new TurnoutError('TURNOUT_CONFIG_INVALID', `${file} ${what}.`, { details: { file, path } });
}
