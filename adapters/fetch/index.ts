export { rpcFetch } from './rpc-fetch.ts';
export type { RpcFetchInit } from './rpc-fetch.ts';
export { switchedOver } from './switched-over.ts';
export type { HonoContextLike, HonoMiddlewareLike } from './switched-over.ts';
