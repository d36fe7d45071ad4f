/** Foldstream SDK for TypeScript and JavaScript: write a projection, test it with the test runner of
 * Node, build one `.wasm` file. */

export { InvalidArguments, Mismatch, NotFound, Reject, Retry } from "./errors";
export { Event } from "./events";
export type { Inbox, KeyRule, Manifest } from "./manifest";
export { Projection, query, type Query } from "./projection";
export { Table, Value, type ScanOptions } from "./tables";
export { addDays } from "./time";
export {
  bool,
  date,
  i16,
  i32,
  i64,
  i8,
  json,
  list,
  map,
  nothing,
  number,
  oneOf,
  optional,
  record,
  text,
  timestamp,
  tuple,
  u16,
  u32,
  u64,
  u8,
  withDefault,
  type Type,
  type TypeOf,
} from "./types";
