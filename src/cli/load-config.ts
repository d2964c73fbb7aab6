import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { TurnoutError } from '../errors/index.ts';
import { validateConfig } from './validate-config.ts';
import type { TurnoutConfig } from '../config.ts';

const defaultNames = ['turnout.config.ts', 'turnout.config.mts', 'turnout.config.js', 'turnout.config.mjs'];

/** Failures that may mean "this Node can't read this TypeScript by itself" rather than "the configuration is wrong". */
function mayNeedTsx(error: unknown): boolean {
  // Import statements in a package of type commonjs: Node has no code for it.
  return error instanceof SyntaxError || needsTsx.has(codeOf(error));
}

const needsTsx = new Set(['ERR_UNKNOWN_FILE_EXTENSION', 'ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX', 'ERR_MODULE_NOT_FOUND']);

/**
 * Loads `turnout.config.ts` (or the file given) and checks it. Throws TURNOUT_CONFIG_INVALID.
 *
 * First as any module: that serves JavaScript, Node's own type stripping, and a process that already runs under a loader.
 * Where that can't read the file (Node 20; enums or decorators; imports without extension; `paths`), tsx is
 * registered for the process and it is imported again. Not `tsImport()`: its name space loads `turnout` a second time,
 * and two instances don't share AsyncLocalStorage or `instanceof`.
 */
export async function loadConfig(cwd: string, name: string | undefined): Promise<TurnoutConfig> {
  const file = findConfig(cwd, name);
  const url = pathToFileURL(file).href;
  let loaded: unknown;
  try {
    loaded = await import(url).catch(async (error: unknown) => {
      if (!/\.[mc]?ts$/.test(file) || !mayNeedTsx(error)) throw error;
      await registerTsx();
      // Node remembers that loading this address failed; another query is another module.
      return import(`${url}?tsx`);
    });
  } catch (error) {
    throw new TurnoutError('TURNOUT_CONFIG_INVALID', `${file} can't be loaded: ${messageOf(error)}.`, {
      details: { file },
      cause: error,
    });
  }
  return validateConfig(exportOf(loaded), file);
}

function findConfig(cwd: string, name: string | undefined): string {
  const candidates = name === undefined ? defaultNames : [name];
  const found = candidates.map((candidate) => resolve(cwd, candidate)).find((candidate) => existsSync(candidate));
  if (found !== undefined) return found;
  const message =
    name === undefined
      ? `There is no ${defaultNames[0]} in ${cwd}; create one, or name another with --config.`
      : `There is no ${resolve(cwd, name)}, which was named with --config.`;
  throw new TurnoutError('TURNOUT_CONFIG_INVALID', message, { details: { cwd, candidates } });
}

let registered = false;

async function registerTsx(): Promise<void> {
  if (registered) return;
  registered = true;
  // Both: a package without "type": "module" is loaded through require().
  const [esm, cjs] = await Promise.all([import('tsx/esm/api'), import('tsx/cjs/api')]);
  cjs.register();
  esm.register();
}

/** `export default`, `export const config`, and what a default export becomes on its way through CommonJS. */
function exportOf(module: unknown): unknown {
  const { default: exported, config } = module as { default?: unknown; config?: unknown };
  const value = exported ?? config;
  return typeof value === 'object' && value !== null && 'default' in value ? value.default : value;
}

function codeOf(error: unknown): string {
  return typeof error === 'object' && error !== null && 'code' in error ? String(error.code) : '';
}

function messageOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replace(/\.$/, '');
}
