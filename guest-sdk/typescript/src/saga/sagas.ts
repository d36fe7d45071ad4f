/** The instances of a saga, in the state of a handler. */

import type { Effects } from "../effects";
import { Reject } from "../errors";
import type { Event } from "../events";
import { openingIn } from "../module";
import { Table, utf8Length, type ScanOptions } from "../tables";
import { nanosecondsOf } from "../time";
import type { Fired } from "../timers";
import { text } from "../types";
import { matchesAny, type Saga } from "./definition";
import { FORMAT, begun, hasEnded, instanceType, type Instance, type Status } from "./instance";
import { Listing, placeOf, type Ignored, type Place } from "./listing";
import { Transition } from "./transition";

/** Longest correlation key as it is stored, in bytes: names of timers and keys of entries have it. */
const KEY_BYTES_MAX = 400;
/** What names of timers escape: control characters, which they can't have, and what escapes them. */
const ESCAPED = /[\u0000-\u001f%\u007f-\u009f]/g;

/** What an event or a timer meant to a saga: it is not about this saga; it changed its instance,
 * which now has this status; its instance had ended long enough ago, and is removed; it changed
 * nothing, and why. */
export type Handled =
  | { is: "unrelated" }
  | { is: "changed"; status: Status }
  | { is: "removed" }
  | { is: "ignored"; why: Ignored };

/** Runs the instances of a saga, one for each correlation key: publishes commands, takes answers, and
 * sets timers. It is a part of a handler's state:
 *
 * ```ts
 * export default class Orders extends Handler {
 *   static override manifest: HandlerManifest = {
 *     name: "orders",
 *     subjects: orders.subjects,
 *     publishes: ["payment.*.charge", "payment.*.refund", "shipping.*.send"],
 *     timers: true,
 *     key: { subjectToken: 2 },
 *   };
 *
 *   sagas = new Sagas(orders);
 *
 *   handle(event: Event, effects: Effects) {
 *     this.sagas.handle(event, effects);
 *   }
 *
 *   override onTimer(timer: Fired, effects: Effects) {
 *     this.sagas.onTimer(timer, effects);
 *   }
 * }
 * ``` */
export class Sagas<D> {
  readonly #saga: Saga<D>;
  /** `saga/<saga>/<key>` */
  readonly #instances: Table<string, Instance<D>>;
  readonly #listing: Listing;

  constructor(saga: Saga<D>) {
    const { state, manifest } = openingIn(`saga ${saga.name}`);
    if (saga.setsTimers && manifest.timers !== true) {
      throw new TypeError(`saga ${saga.name} sets timers, which the manifest does not declare; add timers: true`);
    }
    this.#saga = saga;
    this.#instances = new Table("saga", text, instanceType(saga.data), state, saga.name);
    this.#listing = new Listing(state, saga.name);
  }

  /** Starts an instance or lets one continue, if the event is about this saga.
   *
   * Events that come twice, late or early change nothing but a count. Throws if the event has no
   * sound correlation key, and what a function of the saga throws. */
  handle(event: Event, effects: Effects): Handled {
    const saga = this.#saga;
    if (!saga.concerns(event)) return { is: "unrelated" };
    const key = saga.keyOf(event);
    const timer = timerName(saga.name, key);
    const instance = this.#read(key);
    if (instance !== undefined) {
      return this.#meet(event, new Transition(saga, key, timer, event.time, instance, effects));
    }
    if (!matchesAny(saga.starts, event)) return this.#ignore("unknown");
    const started = begun(saga.begin(event), event.time);
    new Transition(saga, key, timer, event.time, started, effects).start(event);
    return this.#write(key, undefined, started);
  }

  /** Lets an instance continue, if the timer is one of this saga. */
  onTimer(timer: Fired, effects: Effects): Handled {
    const key = keyOfTimer(this.#saga.name, timer.name);
    if (key === undefined) return { is: "unrelated" };
    const instance = this.#read(key);
    if (instance === undefined || !isDue(instance.due, timer)) return this.#ignore("stale-timer");
    const before = placeOf(instance, key);
    if (hasEnded(instance.status)) {
      this.#listing.moved(before, undefined);
      this.#instances.delete(key);
      return { is: "removed" };
    }
    new Transition(this.#saga, key, timer.name, timer.time, instance, effects).fire();
    return this.#write(key, before, instance);
  }

  /** The instance of a correlation key. */
  get(key: string): Instance<D> | undefined {
    return this.#instances.get(key);
  }

  /** Instances in the order of their keys. */
  scan(options: ScanOptions<string> = {}): Generator<[string, Instance<D>]> {
    return this.#instances.scan(options);
  }

  #read(key: string): Instance<D> | undefined {
    const instance = this.#instances.get(key);
    if (instance !== undefined && instance.format > FORMAT) {
      throw new Reject(
        `saga ${this.#saga.name} of ${key} was written in format ${instance.format}, and this version of the ` +
          `module knows ${FORMAT}; deploy the newer one again`,
      );
    }
    return instance;
  }

  #meet(event: Event, transition: Transition<D>): Handled {
    const { key, instance } = transition;
    const before = placeOf(instance, key);
    const isLost = instance.status !== "stuck" && !transition.isKnown();
    if (isLost) transition.lostStep();
    // Met as by any other stuck instance: a cancellation, or an answer to another step, must not be
    // lost because it came first.
    const ignored = transition.meet(event);
    return ignored === undefined || isLost ? this.#write(key, before, instance) : this.#ignore(ignored);
  }

  #write(key: string, before: Place | undefined, instance: Instance<D>): Handled {
    this.#listing.moved(before, placeOf(instance, key));
    this.#instances.set(key, instance);
    return { is: "changed", status: instance.status };
  }

  #ignore(why: Ignored): Handled {
    this.#listing.ignored(why);
    return { is: "ignored", why };
  }
}

/** Whether an instance waits for this timer. Both times may be rounded: another language stores
 * nanoseconds, and the engine passes the nearest of 256. */
export function isDue(due: string | undefined, { atUs }: Pick<Fired, "atUs">): boolean {
  if (due === undefined) return false;
  const apart = nanosecondsOf(due)! - BigInt(atUs) * 1_000n;
  return apart <= 1_000n && apart >= -1_000n;
}

/** The name of the timer of an instance: `saga/<saga>/<key>`. */
export function timerName(saga: string, key: string): string {
  const stored = text.part!.write(text.check(key));
  const name = `saga/${saga}/${key.replace(ESCAPED, encodeURIComponent)}`;
  if (key === "" || Math.max(utf8Length(stored), utf8Length(name)) > KEY_BYTES_MAX) {
    const shown = JSON.stringify([...key].slice(0, 64).join(""));
    throw new Reject(
      `a correlation key of saga ${saga} has ${utf8Length(key)} bytes; use 1 to about ${KEY_BYTES_MAX}: ${shown}`,
    );
  }
  return name;
}

/** The correlation key in the name of a timer; none if the timer is not one of this saga. */
export function keyOfTimer(saga: string, name: string): string | undefined {
  const start = `saga/${saga}/`;
  if (!name.startsWith(start)) return undefined;
  try {
    return decodeURIComponent(name.slice(start.length));
  } catch {
    return undefined;
  }
}
