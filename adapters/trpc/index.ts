export { callContext } from './call-context.ts';
export type { CallContext, ContextOptions } from './call-context.ts';
export { rpcHeaders, rpcLink, rpcTrpc } from './rpc-trpc.ts';
export type { RpcOperation, RpcOptions } from './rpc-trpc.ts';
export { switchedOver } from './switched-over.ts';
export type { SwitchedOverOptions, TrpcCall } from './switched-over.ts';
