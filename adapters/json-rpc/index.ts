export { switchedOver } from './switched-over.ts';
export type { GatedServer, JsonRpcExchange, JsonRpcOptions } from './switched-over.ts';
