export { InjectTurnout, TURNOUT, TurnoutModule } from './turnout-module.ts';
export type { TurnoutModuleAsyncOptions, TurnoutModuleOptions } from './turnout-module.ts';
export { SwitchedOver } from './switched-over.ts';
