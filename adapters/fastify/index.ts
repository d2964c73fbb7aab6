export { switchedOver } from './switched-over.ts';
