export { definitiveCodes } from '../../src/switchover/index.ts';
export { rpcConnect } from './rpc-connect.ts';
export { switchedOver } from './switched-over.ts';
