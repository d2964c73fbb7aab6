export { definitiveCodes } from '../../src/switchover/index.ts';
export { rpcGrpc } from './rpc-grpc.ts';
export type { RpcGrpcOptions, UnaryCall } from './rpc-grpc.ts';
export { switchedOver } from './switched-over.ts';
