export { rpcAxios } from './rpc-axios.ts';
export type { AxiosLike, RpcAxiosConfig } from './rpc-axios.ts';
