// The calls that the shop has always made after an order. What is new: they are given what happened as an event, and
// pass on the headers that let the other side recognise a repeat.
import type { RpcAnswer, RpcCall, TurnoutEvent } from 'turnout';
import { rpcFetch } from 'turnout/fetch';
import type { Order } from '../events.ts';

export interface Addresses {
  readonly email: string;
  readonly fulfilment: string;
  readonly loyalty: string;
}

type Call = (event: TurnoutEvent<Order>, call: RpcCall) => Promise<RpcAnswer>;

export interface Calls {
  readonly sendConfirmation: Call;
  readonly ship: Call;
  readonly stopShipping: Call;
  readonly addPoints: Call;
  readonly removePoints: Call;
}

export function callsTo(addresses: Addresses): Calls {
  return {
    sendConfirmation: (event, call) => post(call, `${addresses.email}/confirmations`, event.data),
    ship: (event, call) => post(call, `${addresses.fulfilment}/shipments`, event.data),
    stopShipping: (event, call) => post(call, `${addresses.fulfilment}/shipments/stop`, event.data),
    addPoints: (event, call) => post(call, `${addresses.loyalty}/points`, event.data),
    removePoints: (event, call) => post(call, `${addresses.loyalty}/points/remove`, event.data),
  };
}

function post(call: RpcCall, url: string, body: Order): Promise<RpcAnswer> {
  return rpcFetch(call, url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', authorization: 'Bearer shop-service' },
    body: JSON.stringify(body),
  });
}
