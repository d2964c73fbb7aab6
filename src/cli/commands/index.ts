export { addConsumeCommands } from './consume.ts';
export { addMigrateCommands } from './migrate.ts';
export { addRelayCommands } from './relay.ts';
export { addRunCommands } from './run.ts';
export { addStatusCommands } from './status.ts';
export { addSwitchCommands, switchStage } from './switch.ts';
export { addTopicsCommands } from './topics.ts';
