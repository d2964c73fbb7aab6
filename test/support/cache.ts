import { mkdirSync } from 'node:fs';
import { homedir, tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';

/**
 * A directory for what was fetched once: under `TURNOUT_CACHE`, else `~/.cache/turnout`. What another user must be able
 * to read goes under the temporary directory instead, since nobody else sees into /root.
 */
export function cacheDirectory(name: string, sharedWithOthers = false): string {
  const base = sharedWithOthers
    ? join(tmpdir(), `turnout-cache-${userInfo().uid}`)
    : (process.env['TURNOUT_CACHE'] ?? join(homedir(), '.cache', 'turnout'));
  const directory = join(base, name);
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  return directory;
}
