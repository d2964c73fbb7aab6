export type { Io } from './output.ts';
export { runCli } from './program.ts';
