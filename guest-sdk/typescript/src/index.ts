/** Foldstream SDK for TypeScript and JavaScript: write a projection or a handler, test it with the
 * test runner of Node, build one `.wasm` file. */

export type { Effects, MessageOptions } from "./effects";
export { InvalidArguments, Mismatch, NotFound, Reject, Retry } from "./errors";
export { Event } from "./events";
export { Handler } from "./handler";
export type { HandlerManifest, Inbox, KeyRule, Manifest } from "./manifest";
export { NewEntries, OldEntry, UnknownVersion } from "./migration";
export { query, type Query } from "./module";
export { Projection } from "./projection";
export { Table, Value, type ScanOptions } from "./tables";
export { addDays, days, hours, minutes, seconds } from "./time";
export { Fired } from "./timers";
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
  maybe,
  nothing,
  number,
  oneOf,
  optional,
  record,
  tagged,
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
export { firstVersion, type Versions } from "./versions";
