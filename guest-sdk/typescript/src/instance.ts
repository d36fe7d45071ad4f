/** One running instance of a module: answers the calls of the host. */

import { Collected, type Effects, type Outbox } from "./effects";
import { InvalidArguments, Mismatch, Retry } from "./errors";
import type { Event } from "./events";
import { Handler } from "./handler";
import { open, type Module, type ModuleClass } from "./module";
import { NewEntries, OldEntry, type Stored } from "./migration";
import { parse } from "./parse";
import { Projection } from "./projection";
import { NO_EVENT, State, Unwritable, type Backend } from "./tables";
import type { Fired } from "./timers";
import { beginCall, refuseWaiting } from "./waiting";

/** Why a batch could not be applied completely. */
export interface Failed {
  index: number;
  retry: boolean;
  error: unknown;
}

/** A module with its state. */
export class Instance {
  readonly #state: State;
  readonly #outbox: Outbox | undefined;
  readonly module: Module;

  /** Only handlers need an outbox. */
  constructor(made: ModuleClass, backend: Backend, outbox?: Outbox) {
    this.#state = new State(backend);
    this.#outbox = outbox;
    this.module = open(made, this.#state);
  }

  /** Applies or handles a batch. After a failure the instance must not be used again. */
  apply(events: readonly Event[]): Failed | undefined {
    const { module } = this;
    if (module instanceof Projection) return this.#each("apply", events, (event) => module.apply(event));
    const handler = module as Handler;
    return this.#each("handle", events, (event) => this.#acting((effects) => handler.handle(event, effects)));
  }

  /** Handles timers that fire. After a failure the instance must not be used again. */
  fire(timers: readonly Fired[]): Failed | undefined {
    const handler = this.module as Handler;
    return this.#each("onTimer", timers, (timer) => this.#acting((effects) => handler.onTimer(timer, effects)));
  }

  /** Answers a query with JSON text; undefined if there is no such query. */
  query(name: string, args: string | Uint8Array): string | undefined {
    if (!Object.hasOwn(this.module.queries, name)) return undefined;
    this.#state.writable = false;
    let given: unknown;
    try {
      given = args.length === 0 || (typeof args === "string" && args.trim() === "") ? undefined : parse(args);
    } catch (error) {
      throw error instanceof Mismatch ? new InvalidArguments(error.message) : error;
    }
    beginCall();
    const answer = this.module.queries[name]!.answer(given);
    refuseWaiting(`query ${name}`, answer);
    // No answer is null.
    return JSON.stringify(answer ?? null);
  }

  /** Converts a page of entries of an older version. The state is not accessible meanwhile. */
  migrate(fromVersion: number, page: readonly Stored[]): Stored[] {
    // One list for the page: the host takes the last of several entries of one key.
    const entries = new NewEntries();
    beginCall();
    for (const [key, value] of page) {
      const returned: unknown = this.module.migrate!(fromVersion, new OldEntry(key, value), entries);
      refuseWaiting("migrate", returned);
    }
    return entries.stored;
  }

  #each<T>(method: string, items: readonly T[], react: (item: T) => unknown): Failed | undefined {
    let index = 0;
    beginCall();
    try {
      for (; index < items.length; index++) {
        this.#state.event = index;
        const returned = react(items[index]!);
        refuseWaiting(method, returned);
        this.#state.event = NO_EVENT;
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

  /** Passes effects on after success only: a failed event has none. */
  #acting(react: (effects: Effects) => unknown): unknown {
    const collected = new Collected();
    const returned = react(collected);
    collected.close();
    // The host finds the cause by its index in the batch.
    if (this.#outbox !== undefined) collected.passOn(this.#state.event, this.#outbox);
    return returned;
  }
}
