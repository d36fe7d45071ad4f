/** What a TypeScript module exports to a host; only `foldstream build` imports it, for the
 * component. */

import { write } from "foldstream:module/log@0.1.0";
import { get, putMany, scan, type Payload } from "foldstream:module/state@0.1.0";
import { InvalidArguments, NotFound, isDeliberate, summary } from "./errors";
import { Event } from "./events";
import type { Manifest } from "./manifest";
import { Instance, Projection, type ProjectionClass } from "./projection";
import { firstPlace, resolveStack } from "./stack";
import type { Backend } from "./tables";

/** Most entries that a host takes in one call. */
const PUTS_MAX = 65_536;

/** An event, as the host passes it. */
interface WireEvent {
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

/** The functions that a component exports. Runs when the component is built, so a mistake in a
 * declaration is found then. */
export function exported(module: unknown) {
  if (typeof module !== "function" || !(module.prototype instanceof Projection)) {
    throw new TypeError("the module must export its projection: export default class … extends Projection");
  }
  const made = module as unknown as ProjectionClass;
  const asked: Manifest | undefined = made.manifest;
  if (asked === undefined || !Array.isArray(asked.subjects)) {
    throw new TypeError(`${made.name} lacks its manifest: static override manifest = { name, subjects }`);
  }
  setConsole();
  const queries = Object.entries(opened(made).projection.queries);
  let running: Instance | undefined;
  return {
    manifest: () => manifest(asked, queries.map(([name, { description }]) => ({ name, description }))),
    inbox: () => inbox(asked),
    apply(events: WireEvent[]) {
      running ??= new Instance(made, state);
      const failed = running.apply(
        events.map(({ sequence, timeNs, subject, kind, headers, data }) => {
          const named = headers.length === 0 ? NO_HEADERS : new Map(headers);
          // The nearest microsecond: exact if the time was given in microseconds.
          return new Event(sequence, Math.round(timeNs / 1_000), subject, kind, named, data.val);
        }),
      );
      if (failed === undefined) return;
      // What the instance holds no longer matches the host's state.
      running = undefined;
      tell(failed.error);
      throw {
        index: failed.index,
        kind: failed.retry ? "retry" : "reject",
        message: summary(failed.error, firstPlace),
      };
    },
    query(name: string, args: Payload): Payload {
      let answer: string | undefined;
      try {
        // A fresh instance: the state of a query is a snapshot of its own.
        answer = new Instance(made, state).query(name, args.val);
      } catch (error) {
        tell(error);
        throw queryError(error);
      }
      if (answer === undefined) throw { tag: "unknown-query" };
      return { tag: "text", val: answer };
    },
  };
}

/** An instance, or what is wrong with the declarations, in terms of the sources. */
function opened(made: ProjectionClass): Instance {
  try {
    return new Instance(made, state);
  } catch (error) {
    if (error instanceof Error) error.stack = resolveStack(error.stack ?? "");
    throw error;
  }
}

function queryError(error: unknown) {
  if (error instanceof NotFound) return { tag: "not-found" };
  if (error instanceof InvalidArguments) return { tag: "invalid-arguments", val: error.message };
  return { tag: "failed", val: summary(error, firstPlace) };
}

/** Writes where an error came from to the log, unless it was thrown on purpose. */
function tell(error: unknown): void {
  if (error instanceof Error && !isDeliberate(error)) {
    write("error", `${error.name}: ${error.message}\n${resolveStack(error.stack ?? "")}`.trimEnd());
  }
}

/** The console writes to the host's log. */
function setConsole(): void {
  const writer =
    (level: "debug" | "info" | "warn" | "error") =>
    (...values: unknown[]) =>
      write(level, values.map((value) => (typeof value === "string" ? value : shown(value))).join(" "));
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

function manifest(asked: Manifest, queries: { name: string; description: string }[]) {
  return {
    kind: "projection",
    name: asked.name,
    description: asked.description ?? "",
    subjects: asked.subjects,
    wantsHeaders: asked.headers ?? false,
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

function inbox({ inbox: asked }: Manifest) {
  if (asked === undefined) return undefined;
  let id: { tag: string; val?: string } = { tag: "message-id" };
  if (asked.id !== undefined) {
    id = "header" in asked.id ? { tag: "header", val: asked.id.header } : { tag: "data-pointer", val: asked.id.dataPointer };
  }
  return { id, windowMs: asked.windowMs, idsMax: asked.idsMax ?? 1_000_000 };
}
