/** What TypeScript modules of any kind export to a host; only components import it. */

import { write } from "foldstream:module/log@0.1.0";
import { get, putMany, scan, type Payload } from "foldstream:module/state@0.1.0";
import { InvalidArguments, NotFound, isDeliberate, summary } from "./errors";
import type { Outbox } from "./effects";
import { Event } from "./events";
import { Instance, type Failed } from "./instance";
import { wantsHeaders, type HandlerManifest, type Manifest } from "./manifest";
import type { Module, ModuleClass } from "./module";
import { firstPlace, resolveStack } from "./stack";
import type { Backend } from "./tables";
import type { Fired } from "./timers";
import { watchPromises } from "./waiting";

/** Most entries that a host takes in one call. */
const PUTS_MAX = 65_536;

/** An event, as the host passes it. */
export interface WireEvent {
  sequence: number;
  /** A number has 53 bits, so of a time in nanoseconds the last 256 are lost. */
  timeNs: number;
  subject: string;
  kind: string;
  headers: [string, string][];
  data: Payload;
}

/** The state of the host. */
const state: Backend = {
  get(key) {
    return get(key)?.val;
  },
  putMany(entries) {
    for (let start = 0; start < entries.length; start += PUTS_MAX) {
      const part = entries.slice(start, start + PUTS_MAX);
      putMany(part.map(([key, value]) => [key, value === undefined ? undefined : { tag: "text", val: value }]));
    }
  },
  scan(start, end, after, backwards, limit) {
    const selection = { tag: "range" as const, val: { start, end } };
    const page = scan(selection, after, backwards ? "backwards" : "forwards", limit);
    return { entries: page.entries.map(({ key, value }) => [key, value.val]), more: page.more };
  },
};

const NO_HEADERS: ReadonlyMap<string, string> = new Map();

/** Evaluates the file of a module, and returns what it exports. */
export type Load = () => { default?: unknown };

/** A kind of module, as its class says it. */
export interface Kind<M extends Module> {
  /** The class that modules of the kind extend. */
  base: abstract new () => M;
  /** Its name, for people. */
  name: "projection" | "handler";
  /** The error of a module of another kind. */
  otherwise: string;
  /** Only handlers have one. */
  outbox?: Outbox | undefined;
}

/** An entry, as the host passes it. */
interface WireEntry {
  key: string;
  value: Payload;
}

/** A module that runs: what components of any kind do with it. */
export class Running<M extends Module> {
  readonly manifest: Manifest & HandlerManifest;
  readonly queries: { name: string; description: string }[];
  readonly #made: ModuleClass<M>;
  readonly #outbox: Outbox | undefined;
  #instance: Instance | undefined;

  /** Runs when the component is built, so a mistake in a declaration is found then. `migrates` says
   * whether the component exports `migrate`. */
  constructor(load: Load, migrates: boolean, { base, name, otherwise, outbox }: Kind<M>) {
    const { default: module } = inSources(load);
    if (typeof module !== "function" || !(module.prototype instanceof base)) {
      const advice = `the module must export its ${name}: export default class … extends ${base.name}`;
      throw new TypeError(`${advice}; ${otherwise}`);
    }
    this.#made = module as unknown as ModuleClass<M>;
    this.#outbox = outbox;
    this.manifest = this.#made.manifest;
    if (this.manifest === undefined || !Array.isArray(this.manifest.subjects)) {
      throw new TypeError(`${this.#made.name} lacks its manifest: static override manifest = { name, subjects }`);
    }
    setConsole();
    watchPromises();
    const { module: made } = inSources(() => new Instance(this.#made, state));
    if (migrates !== (made.migrate !== undefined)) {
      const setting = '"foldstream": { "migrates": true }';
      throw new TypeError(
        migrates
          ? `package.json says ${setting}, and ${this.#made.name} has no migrate`
          : `${this.#made.name} has migrate, which needs ${setting} in package.json`,
      );
    }
    const queries = Object.entries(made.queries);
    this.queries = queries.map(([name, { description }]) => ({ name, description }));
  }

  /** Applies or handles a batch; what it throws is the failure in the terms of the contract. */
  apply(events: WireEvent[]): void {
    this.#do((instance) => instance.apply(events.map(eventOf)));
  }

  /** Handles timers that fire, in the same way. */
  fire(timers: Fired[]): void {
    this.#do((instance) => instance.fire(timers));
  }

  query(name: string, args: Payload): Payload {
    let answer: string | undefined;
    try {
      // A fresh instance: the state of a query is a snapshot of its own.
      answer = new Instance(this.#made, state).query(name, args.val);
    } catch (error) {
      tell(error);
      throw queryError(error);
    }
    if (answer === undefined) throw { tag: "unknown-query" };
    return { tag: "text", val: answer };
  }

  /** Converts a page of an older version; what it throws tells people why it can't. */
  migrate(fromVersion: number, page: WireEntry[]): WireEntry[] {
    try {
      const instance = new Instance(this.#made, state);
      const made = instance.migrate(fromVersion, page.map(({ key, value }) => [key, value.val]));
      return made.map(([key, val]) => ({ key, value: payloadOf(val) }));
    } catch (error) {
      tell(error);
      throw summary(error, firstPlace);
    }
  }

  #do(call: (instance: Instance) => Failed | undefined): void {
    this.#instance ??= new Instance(this.#made, state, this.#outbox);
    const failed = call(this.#instance);
    if (failed === undefined) return;
    // What the instance holds no longer matches the host's state.
    this.#instance = undefined;
    tell(failed.error);
    throw {
      index: failed.index,
      kind: failed.retry ? "retry" : "reject",
      message: summary(failed.error, firstPlace),
    };
  }
}

/** The nearest microsecond of a time as the host passes it: exact if the time was given in
 * microseconds. */
export function microseconds(nanoseconds: number): number {
  return Math.round(nanoseconds / 1_000);
}

/** Text or bytes, as the host takes them. */
export function payloadOf(val: string | Uint8Array): Payload {
  return typeof val === "string" ? { tag: "text", val } : { tag: "bytes", val };
}

function eventOf({ sequence, timeNs, subject, kind, headers, data }: WireEvent): Event {
  const named = headers.length === 0 ? NO_HEADERS : new Map(headers);
  return new Event(sequence, microseconds(timeNs), subject, kind, named, data.val);
}

/** What a call returns; what it throws has the places of the sources. */
function inSources<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    if (error instanceof Error) error.stack = resolveStack(error.stack ?? "");
    throw error;
  }
}

function queryError(error: unknown) {
  if (error instanceof NotFound) return { tag: "not-found" };
  if (error instanceof InvalidArguments) return { tag: "invalid-arguments", val: summary(error) };
  return { tag: "failed", val: summary(error, firstPlace) };
}

/** Writes where an error came from to the log, unless it was thrown on purpose. */
function tell(error: unknown): void {
  if (error instanceof Error && !isDeliberate(error)) {
    log("error", `${error.name}: ${error.message}\n${resolveStack(error.stack ?? "")}`.trimEnd());
  }
}

/** Writes to the host's log. Half of a pair of surrogates is no text, and would end the call. */
function log(level: "debug" | "info" | "warn" | "error", message: string): void {
  write(level, message.toWellFormed());
}

/** The console writes to the host's log. */
function setConsole(): void {
  const writer =
    (level: "debug" | "info" | "warn" | "error") =>
    (...values: unknown[]) =>
      log(level, values.map((value) => (typeof value === "string" ? value : shown(value))).join(" "));
  const console = { debug: writer("debug"), log: writer("info"), info: writer("info"), warn: writer("warn"), error: writer("error") };
  Object.assign(globalThis, { console });
}

function shown(value: unknown): string {
  if (value instanceof Error) return `${value.name}: ${value.message}`;
  try {
    return JSON.stringify(value, (_, inner) => (typeof inner === "bigint" ? String(inner) : inner)) ?? String(value);
  } catch {
    return String(value);
  }
}

/** What the manifests of all kinds have. */
export function manifestOf({ manifest: asked, queries }: Running<Module>) {
  return {
    name: asked.name,
    description: asked.description ?? "",
    subjects: asked.subjects,
    wantsHeaders: wantsHeaders(asked),
    keyRule: keyRule(asked),
    stateVersion: asked.stateVersion ?? 1,
    errorPolicy: {
      attempts: asked.attempts,
      initialBackoffMs: asked.backoffMs?.[0],
      maxBackoffMs: asked.backoffMs?.[1],
    },
    limits: {
      memoryBytes: asked.memoryLimit,
      deadlineMs: asked.deadlineMs,
      batchEvents: asked.batchLimit,
      stateBytes: asked.stateLimit,
    },
    queries,
  };
}

function keyRule({ key }: Manifest) {
  if (key === undefined) return { tag: "none" };
  if (key === "subject") return { tag: "subject" };
  if ("subjectToken" in key) return { tag: "subject-token", val: key.subjectToken };
  if ("header" in key) return { tag: "header", val: key.header };
  return { tag: "data-pointer", val: key.dataPointer };
}

/** How events are recognised that were published twice. */
export function inboxOf({ manifest: { inbox: asked } }: Running<Module>) {
  if (asked === undefined) return undefined;
  let id: { tag: string; val?: string } = { tag: "message-id" };
  if (asked.id !== undefined) {
    id = "header" in asked.id ? { tag: "header", val: asked.id.header } : { tag: "data-pointer", val: asked.id.dataPointer };
  }
  return { id, windowMs: asked.windowMs, idsMax: asked.idsMax ?? 1_000_000 };
}
