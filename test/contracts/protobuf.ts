// The service that the drivers of gRPC and Connect serve and call, once for each library; without generated code.
import { create, createFileRegistry } from '@bufbuild/protobuf';
import type { DescMethodUnary, DescService } from '@bufbuild/protobuf';
import {
  FieldDescriptorProto_Label,
  FieldDescriptorProto_Type,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
} from '@bufbuild/protobuf/wkt';
import { loadPackageDefinition } from '@grpc/grpc-js';
import type { ServiceClientConstructor } from '@grpc/grpc-js';
import { fromJSON } from '@grpc/proto-loader';

const definition = fromJSON({
  nested: {
    Effects: {
      methods: {
        Have: { requestType: 'Order', responseType: 'Answer' },
        Watch: { requestType: 'Order', responseType: 'Answer', responseStream: true },
      },
    },
    Nowhere: { methods: { Have: { requestType: 'Order', responseType: 'Answer' } } },
    Order: { fields: { name: { type: 'string', id: 1 }, step: { type: 'int32', id: 2 } } },
    Answer: { fields: { sent: { type: 'string', id: 1 } } },
  },
} as unknown as Parameters<typeof fromJSON>[0]);
const loaded = loadPackageDefinition(definition);
export const GrpcEffects = loaded['Effects'] as ServiceClientConstructor;
export const GrpcNowhere = loaded['Nowhere'] as ServiceClientConstructor;

const { STRING, INT32 } = FieldDescriptorProto_Type;
const label = FieldDescriptorProto_Label.OPTIONAL;
const method = { name: 'Have', inputType: '.test.Order', outputType: '.test.Answer' };
const file = create(FileDescriptorProtoSchema, {
  name: 'test.proto',
  package: 'test',
  syntax: 'proto3',
  messageType: [
    {
      name: 'Order',
      field: [
        { name: 'name', number: 1, type: STRING, label, jsonName: 'name' },
        { name: 'step', number: 2, type: INT32, label, jsonName: 'step' },
      ],
    },
    { name: 'Answer', field: [{ name: 'sent', number: 1, type: STRING, label, jsonName: 'sent' }] },
  ],
  service: [
    { name: 'Effects', method: [method] },
    { name: 'Nowhere', method: [method] },
  ],
});
const registry = createFileRegistry(create(FileDescriptorSetSchema, { file: [file] }));
export const ConnectEffects = registry.getService('test.Effects') as DescService;
export const ConnectNowhere = registry.getService('test.Nowhere') as DescService;
export const have = ConnectEffects.method['have'] as DescMethodUnary;
