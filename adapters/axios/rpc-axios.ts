import axios, { AxiosHeaders, isAxiosError } from 'axios';
import type { AxiosRequestConfig, AxiosResponse } from 'axios';
import type { RpcAnswer, RpcCall } from '../../src/switchover/index.ts';

/** What is used of axios, or of an instance. */
export interface AxiosLike {
  request(config: AxiosRequestConfig): Promise<AxiosResponse<unknown>>;
}

/** What axios takes, but for what belongs to the call. */
export interface RpcAxiosConfig extends Omit<
  AxiosRequestConfig,
  'url' | 'headers' | 'signal' | 'cancelToken' | 'timeout' | 'maxRedirects' | 'validateStatus'
> {
  readonly headers?: Record<string, string> | AxiosHeaders;
  /** Your own instance, with its interceptors. One that sends a request again by itself takes the time of the call. */
  readonly axios?: AxiosLike;
}

/**
 * Makes a switchover's call with axios: with the headers by which the endpoint knows the effect, and bounded by the call's
 * time-out. Uses POST unless told otherwise. Resolves with any answer, whatever its status; rejects when there is none.
 *
 * The body (`data`) has to be the same for the same event, or a repeat is refused (422): nothing of the moment in it, and no user's token.
 *
 * @example
 * on(OrderPlaced, (event, call) => rpcAxios(call, 'http://email/confirmations', { data: event.data, axios: mailClient }));
 */
export async function rpcAxios(call: RpcCall, url: string, config: RpcAxiosConfig = {}): Promise<RpcAnswer> {
  const { axios: instance = axios, headers, ...rest } = config;
  try {
    const response = await instance.request({
      method: 'post',
      ...rest,
      url,
      headers: AxiosHeaders.concat(headers, call.headers),
      signal: call.signal,
      validateStatus: () => true,
      // Where it leads, the headers of the call might not be followed. The second is for the adapter `fetch`.
      maxRedirects: 0,
      fetchOptions: { ...rest.fetchOptions, redirect: 'manual' },
    });
    return answerOf(response);
  } catch (error) {
    // An interceptor that turns an answer into an error does not make it none.
    if (isAxiosError<unknown>(error) && error.response !== undefined) return answerOf(error.response);
    throw error;
  }
}

function answerOf({ status, headers, data }: AxiosResponse<unknown>): RpcAnswer {
  const entries = Object.entries(headers as Record<string, unknown>);
  return {
    status,
    headers: Object.fromEntries(entries.map(([name, value]) => [name.toLowerCase(), String(value)])),
    body: data,
  };
}
