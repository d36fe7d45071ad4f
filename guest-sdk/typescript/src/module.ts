/** What projections and handlers share: tables over the state, and queries. */

import { InvalidArguments, Mismatch } from "./errors";
import type { HandlerManifest, Manifest } from "./manifest";
import type { NewEntries, OldEntry } from "./migration";
import { Table, Value, type KeyOf, type KeyType, type State } from "./tables";
import type { Type } from "./types";

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

/** What the module being made is opened with: the state of its tables, and its manifest. */
interface Opening {
  state: State;
  manifest: Manifest & HandlerManifest;
}

let opening: Opening | undefined;

/** What a part of the module being made is opened with. */
export function openingIn(part: string): Opening {
  if (opening === undefined) throw new TypeError(`${part}: make it where the module makes its tables`);
  return opening;
}

/** A projection or a handler. */
export abstract class Module {
  readonly #state: State;

  constructor() {
    if (opening === undefined) throw new TypeError("a host or a test makes modules, with their state");
    this.#state = opening.state;
  }

  /** A table: its keys begin with `name` and a slash. A key of several parts has a list of types. */
  protected table<const K extends KeyType, V>(name: string, key: K, value: Type<V>): Table<KeyOf<K>, V> {
    return new Table(name, key, value, this.#state);
  }

  /** A single value, under the key `name`. */
  protected value<V>(name: string, type: Type<V>): Value<V> {
    return new Value(name, type, this.#state);
  }

  /** Converts one entry of an older version to the entries that take its place, so that the state need
   * not be rebuilt from the beginning of the stream: raise `stateVersion`, write this, and add
   * `"foldstream": { "migrates": true }` to `package.json`.
   *
   * The host calls it once for every old entry, in the order of the keys. Only what is put into
   * `entries` is stored, and the result must equal a fold of the stream with this version. Tables can't
   * be read here, and one entry knows nothing of the others. Anything thrown ends the migration, and
   * the old state stays unchanged; throw `UnknownVersion` if `fromVersion` is unknown. */
  migrate?(fromVersion: number, old: OldEntry, entries: NewEntries): void;

  /** The queries, by their names. */
  queries: Record<string, Query> = {};
}

/** The class of a module. */
export interface ModuleClass<M extends Module = Module> {
  new (): M;
  readonly manifest: Manifest;
}

/** Makes a module with its tables over a state. */
export function open<M extends Module>(made: ModuleClass<M>, state: State): M {
  opening = { state, manifest: made.manifest };
  try {
    return new made();
  } finally {
    opening = undefined;
  }
}
