/** The class that a projection extends, and one running instance of it. */

import { InvalidArguments, Mismatch, Retry } from "./errors";
import type { Event } from "./events";
import type { Manifest } from "./manifest";
import { State, Table, Unwritable, Value, type Backend, type KeyOf, type KeyType } from "./tables";
import { parse, type Type } from "./types";

/** A query, as `query` makes it. */
export interface Query {
  readonly description: string;
  /** Takes parsed arguments. */
  answer(args: unknown): unknown;
}

/** A query without arguments: a description for people, and a function that answers. */
export function query(description: string, answer: () => unknown): Query;
/** A query with arguments of a type. Throw `NotFound` if the state has nothing for them. */
export function query<A>(description: string, args: Type<A>, answer: (args: A) => unknown): Query;
export function query<A>(
  description: string,
  argsOrAnswer: Type<A> | (() => unknown),
  answer?: (args: A) => unknown,
): Query {
  if (typeof argsOrAnswer === "function") return { description, answer: () => argsOrAnswer() };
  return {
    description,
    answer(given) {
      let args: A;
      try {
        args = given === undefined ? absent(argsOrAnswer) : argsOrAnswer.check(given);
      } catch (error) {
        throw error instanceof Mismatch ? new InvalidArguments(error.message) : error;
      }
      return answer!(args);
    },
  };
}

/** Arguments that were not given: null for what may be absent, an object without fields for other
 * types. */
function absent<A>(type: Type<A>): A {
  try {
    return type.check(null);
  } catch {
    return type.check({});
  }
}

/** The state that the projection being made opens its tables over. */
let opening: State | undefined;

/** Folds events into a read model:
 *
 * ```ts
 * export default class Visits extends Projection {
 *   static override manifest = { name: "visits", subjects: ["visits.*"] };
 *
 *   pages = this.table("page", text, u64);
 *
 *   apply(event: Event) {
 *     const page = event.token(2);
 *     this.pages.set(page, (this.pages.get(page) ?? 0) + 1);
 *   }
 *
 *   override queries = {
 *     visits: query("How often a page was visited", text, (page) => this.pages.get(page) ?? 0),
 *   };
 * }
 * ```
 *
 * The result may depend on the events only: not on batch boundaries, restarts, the clock or
 * randomness. So keep everything in tables and nothing in other fields; the host may replace an
 * instance between any two batches.
 *
 * An error rejects the event, whatever its class; `Retry` asks the host to try again. What the
 * event wrote is dropped; the events before it are kept. */
export abstract class Projection {
  static manifest: Manifest;

  readonly #state: State;

  constructor() {
    if (opening === undefined) throw new TypeError("a host or a test makes projections, with their state");
    this.#state = opening;
  }

  /** A table: its keys begin with `name` and a slash. A key of several parts has a list of types. */
  protected table<const K extends KeyType, V>(name: string, key: K, value: Type<V>): Table<KeyOf<K>, V> {
    return new Table(name, key, value, this.#state);
  }

  /** A single value, under the key `name`. */
  protected value<V>(name: string, type: Type<V>): Value<V> {
    return new Value(name, type, this.#state);
  }

  /** Applies one event to the tables. */
  abstract apply(event: Event): void;

  /** The queries, by their names. */
  queries: Record<string, Query> = {};
}

/** The class of a projection. */
export interface ProjectionClass {
  new (): Projection;
  readonly manifest: Manifest;
}

/** Why a batch could not be applied completely. */
export interface Failed {
  index: number;
  retry: boolean;
  error: unknown;
}

/** A projection with its state: answers the calls of the host. */
export class Instance {
  readonly #state: State;
  readonly projection: Projection;

  constructor(made: ProjectionClass, backend: Backend) {
    this.#state = opening = new State(backend);
    try {
      this.projection = new made();
    } finally {
      opening = undefined;
    }
  }

  /** Applies a batch. After a failure the instance must not be used again. */
  apply(events: readonly Event[]): Failed | undefined {
    let index = 0;
    try {
      for (; index < events.length; index++) {
        this.#state.event = index;
        const returned: unknown = this.projection.apply(events[index]!);
        if (returned instanceof Promise) throw new TypeError("apply must not be async: a fold waits for nothing");
        this.#state.event = -1;
        this.#state.makeRoom();
      }
      // Once for all events: a value that many of them change is encoded once.
      this.#state.flush();
    } catch (error) {
      if (error instanceof Unwritable) return { index: error.index, retry: false, error: error.cause };
      return { index, retry: error instanceof Retry, error };
    }
    return undefined;
  }

  /** Answers a query with JSON text; undefined if there is no such query. */
  query(name: string, args: string | Uint8Array): string | undefined {
    if (!Object.hasOwn(this.projection.queries, name)) return undefined;
    this.#state.writable = false;
    let given: unknown;
    try {
      given = args.length === 0 || (typeof args === "string" && args.trim() === "") ? undefined : parse(args);
    } catch (error) {
      throw error instanceof Mismatch ? new InvalidArguments(error.message) : error;
    }
    // No answer is null.
    return JSON.stringify(this.projection.queries[name]!.answer(given) ?? null);
  }
}
