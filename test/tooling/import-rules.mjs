// Who may import whom: design §9 as a table, held by the linter. oxlint loads it as a plugin (see .oxlintrc.json);
// plain JavaScript, because Node 20 must be able to load it as it is.
import { isBuiltin } from 'node:module';
import { dirname, relative, resolve, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));

const base = ['errors', 'event'];
const stored = [...base, 'database', 'lifecycle'];

/** Folders of src, and the folders each may import. What is not listed may not be imported.
 * @type {Record<string, readonly string[]>} */
export const layers = {
  errors: [],
  event: ['errors'],
  database: base,
  lifecycle: base,
  outbox: stored,
  inbox: stored,
  relay: [...stored, 'outbox'],
  consumer: [...stored, 'inbox'],
  switchover: [...stored, 'outbox', 'inbox', 'consumer'],
  proxy: [...stored, 'outbox', 'switchover'],
  fanout: [...stored, 'inbox', 'consumer'],
  replica: [...stored, 'inbox', 'consumer'],
  catalog: stored,
  observability: [...stored, 'outbox', 'inbox', 'relay', 'consumer', 'switchover'],
  testing: [...stored, 'relay', 'consumer'],
};
/** These compose all of the above: the files at the root of src (`index.ts`, `turnout.ts`), and what nothing imports. */
const composers = ['', 'cli', 'dashboard'];
const neverImported = ['cli', 'dashboard'];

/** Packages that src may import: types, and for the command line its parser and its TypeScript loader. */
const packagesOfSource = ['@standard-schema/spec'];
/** @type {Record<string, readonly string[]>} */
const packagesOfLayer = { cli: ['commander', 'tsx'] };

/** An adapter imports the library it is named after. Here are those for which that is not the package's name.
 * @type {Record<string, readonly string[]>} */
export const packagesOfAdapter = {
  fetch: [],
  'json-rpc': ['json-rpc-2.0'],
  grpc: ['@grpc/grpc-js'],
  connect: ['@connectrpc/connect', '@bufbuild/protobuf'],
  trpc: ['@trpc/server', '@trpc/client'],
  nestjs: ['@nestjs/common', '@nestjs/core', 'rxjs'],
};

/**
 * Why the file must not import that, or undefined if it may.
 * @param {string} file absolute path
 * @param {string} specifier as it is written
 * @returns {string | undefined}
 */
export function whyNot(file, specifier) {
  const importer = placeOf(file);
  if (!importer) return undefined;
  if (isBuiltin(specifier)) return undefined;
  if (!specifier.startsWith('.')) return packageRefused(importer, packageName(specifier));
  const target = placeOf(resolve(dirname(file), specifier));
  return importer.top === 'src' ? layerRefused(importer.folder, target) : adapterRefused(importer.folder, target);
}

/** @typedef {{ top: 'src' | 'adapters', folder: string }} Place */

/** @param {string} file @returns {Place | undefined} */
function placeOf(file) {
  const [top, folder, ...rest] = relative(root, file).split(sep);
  if (top !== 'src' && top !== 'adapters') return undefined;
  return { top, folder: rest.length > 0 ? (folder ?? '') : '' };
}

/** @param {string} folder @param {Place | undefined} target */
function layerRefused(folder, target) {
  if (!target) return 'src imports nothing outside src.';
  if (target.top === 'adapters') return 'src never imports adapters: declare a port and let the adapter implement it.';
  if (target.folder === folder) return undefined;
  if (neverImported.includes(target.folder)) return `Nothing imports ${target.folder}.`;
  if (composers.includes(folder)) return undefined;
  const allowed = layers[folder];
  if (!allowed) return `src/${folder} is no known folder: give it its place in test/tooling/import-rules.mjs.`;
  if (allowed.includes(target.folder)) return undefined;
  return `src/${folder} may import ${allowed.length > 0 ? allowed.join(', ') : 'no other folder'}, not ${target.folder || 'what composes them'}.`;
}

/** @param {string} folder @param {Place | undefined} target */
function adapterRefused(folder, target) {
  if (!target) return 'An adapter imports only its own library and src.';
  if (target.top === 'adapters')
    return target.folder === folder ? undefined : 'An adapter never imports another adapter.';
  return neverImported.includes(target.folder) ? `Nothing imports ${target.folder}.` : undefined;
}

/** @param {Place} importer @param {string} name */
function packageRefused(importer, name) {
  if (importer.top === 'src') {
    if (packagesOfSource.includes(name) || packagesOfLayer[importer.folder]?.includes(name)) return undefined;
    if (name === 'turnout') return 'src and adapters import each other by relative path, not by the package name.';
    return `src imports no third-party client (${name}): that is what adapters are for.`;
  }
  if (name === 'turnout') return 'src and adapters import each other by relative path, not by the package name.';
  const allowed = packagesOfAdapter[importer.folder] ?? [importer.folder];
  return allowed.includes(name) ? undefined : `adapters/${importer.folder} imports only its own library, not ${name}.`;
}

/** @param {string} specifier */
function packageName(specifier) {
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
}

const importRules = {
  create(context) {
    const check = (source) => {
      if (typeof source?.value !== 'string') return;
      const message = whyNot(context.filename, source.value);
      if (message) context.report({ node: source, message });
    };
    return {
      ImportDeclaration: (node) => check(node.source),
      ExportNamedDeclaration: (node) => check(node.source),
      ExportAllDeclaration: (node) => check(node.source),
      ImportExpression: (node) => check(node.source),
      TSImportType: (node) => check(node.source ?? node.argument?.literal ?? node.argument),
      TSExternalModuleReference: (node) => check(node.expression),
      CallExpression(node) {
        if (node.callee.type === 'Identifier' && node.callee.name === 'require') check(node.arguments[0]);
      },
    };
  },
};

// The form that a plugin must have.
export default { meta: { name: 'turnout' }, rules: { imports: importRules } };
