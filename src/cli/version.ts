import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The version of this package. From src/cli and from dist/src/cli alike: the first package.json above that is Turnout's. */
export function packageVersion(): string {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    const read = readPackage(join(folder, 'package.json'));
    if (read?.name === 'turnout' && read.version !== undefined) return read.version;
    if (dirname(folder) === folder) return 'unknown';
  }
}

function readPackage(file: string): { name?: string; version?: string } | undefined {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as { name?: string; version?: string };
  } catch {
    return undefined;
  }
}
