export { rpcFetch } from './rpc-fetch.ts';
export type { RpcFetchInit } from './rpc-fetch.ts';
