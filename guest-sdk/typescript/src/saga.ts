/** Sagas: processes of several steps that others carry out, each of which can be undone. */

export {
  Saga,
  type Call,
  type Compensation,
  type Pattern,
  type Patterns,
  type RetryPolicy,
  type SagaDefinition,
  type SagaMessage,
  type Step,
} from "./saga/definition";
export type { Fate, Instance, Status } from "./saga/instance";
export type { Ignored } from "./saga/listing";
export { Sagas, type Handled } from "./saga/sagas";
