// mailer.proto, loaded when it runs. With generated code these types come from there, and all else stays as it is.
import { fileURLToPath } from 'node:url';
import { loadPackageDefinition } from '@grpc/grpc-js';
import type {
  CallOptions,
  Client,
  ClientUnaryCall,
  Metadata,
  ServiceClientConstructor,
  ServiceError,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

export interface Confirmation {
  readonly orderId: string;
  readonly customerId: string;
  readonly number: number;
  readonly item: string;
}

export interface Queued {
  readonly mailId: string;
}

export interface MailerClient extends Client {
  SendConfirmation(
    request: Confirmation,
    metadata: Metadata,
    options: CallOptions,
    callback: (error: ServiceError | null, response?: Queued) => void,
  ): ClientUnaryCall;
}

const loaded = loadPackageDefinition(loadSync(fileURLToPath(new URL('mailer.proto', import.meta.url))));

export const Mailer = (loaded['mail'] as Record<string, unknown>)['Mailer'] as {
  new (...options: ConstructorParameters<ServiceClientConstructor>): MailerClient;
  readonly service: ServiceClientConstructor['service'];
};
export const SendConfirmation = Mailer.service['SendConfirmation']!;
