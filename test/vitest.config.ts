import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

const root = fileURLToPath(new URL('..', import.meta.url));

// The same names that `paths` in tsconfig.json gives to tsc and tsx, the longest first.
const alias = [
  { find: /^turnout\/testing$/, replacement: `${root}src/testing/index.ts` },
  { find: /^turnout\/([a-z-]+)$/, replacement: `${root}adapters/$1/index.ts` },
  { find: /^turnout$/, replacement: `${root}src/index.ts` },
];

export default defineConfig({
  root,
  resolve: { alias },
  test: {
    reporters: ['default'],
    teardownTimeout: 60_000,
    // Most tests wait for a server, not for the processor.
    maxWorkers: 2,
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['test/unit/**/*.test.ts'],
          testTimeout: 10_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'integration',
          include: ['test/{integration,contracts,faults}/**/*.test.ts'],
          globalSetup: ['test/support/global-setup.ts'],
          pool: 'forks',
          // After the unit tests, before the tooling: what competes for the processor upsets deadlines.
          sequence: { groupOrder: 1 },
          testTimeout: 60_000,
          hookTimeout: 120_000,
          // On CI a deadline may be missed because a machine stood still; what is wrong fails twice. The report shows what was retried.
          retry: process.env['CI'] === undefined ? 0 : 1,
        },
      },
      {
        // `expectTypeOf` and `@ts-expect-error`, judged by the compiler; nothing of it runs.
        extends: true,
        test: {
          name: 'types',
          include: [],
          typecheck: {
            enabled: true,
            only: true,
            checker: 'tsc',
            include: ['test/types/**/*.test-d.ts'],
            tsconfig: 'test/tsconfig.json',
            // Those are `npm run typecheck`'s to report.
            ignoreSourceErrors: true,
          },
        },
      },
      {
        // The linter's rules, and the packed tarball in projects of its users.
        extends: true,
        test: {
          name: 'tooling',
          include: ['test/tooling/**/*.test.ts'],
          sequence: { groupOrder: 2 },
          testTimeout: 180_000,
          hookTimeout: 240_000,
        },
      },
    ],
  },
});
