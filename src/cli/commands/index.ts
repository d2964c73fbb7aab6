export { consume } from './consume.ts';
export { migrateDatabases, printMigrations } from './migrate.ts';
export { rebase } from './relay.ts';
export { run } from './run.ts';
export { showStatus } from './status.ts';
export { showHistory, showSwitchovers, switchStage } from './switch.ts';
export { topicsApply } from './topics.ts';
