export { defineProxy, proxyRoute } from './define-proxy.ts';
export type {
  ProxiedRequest,
  ProxyAnswer,
  ProxyDefinition,
  ProxyOptions,
  ProxyRoute,
  ProxyRouteOptions,
  ProxyTurnout,
  RecordedCall,
} from './define-proxy.ts';
export { runProxy } from './run-proxy.ts';
export type { Proxy, ProxyCounters } from './run-proxy.ts';
