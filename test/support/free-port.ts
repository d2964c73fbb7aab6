import { createServer } from 'node:net';

// Below Linux's ephemeral range (32768 and up): a port from `listen(0)` may be taken as the local end of somebody's
// outgoing connection while its server restarts, and a client that retries it can even connect to itself.
const lowest = 12_000;
const highest = 32_000;

const given = new Set<number>();

/** A port of 127.0.0.1 nobody listens on now, never the same twice in one process. */
export async function freePort(): Promise<number> {
  for (let attempt = 0; attempt < 200; attempt++) {
    const port = lowest + Math.floor(Math.random() * (highest - lowest));
    if (given.has(port) || !(await canListen(port))) continue;
    given.add(port);
    return port;
  }
  throw new Error(`No free port found between ${lowest} and ${highest} on 127.0.0.1.`);
}

function canListen(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
