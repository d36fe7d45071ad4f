/** The class that a handler extends. */

import type { Effects } from "./effects";
import { Reject } from "./errors";
import type { Event } from "./events";
import type { HandlerManifest } from "./manifest";
import { Module } from "./module";
import type { Fired } from "./timers";

/** Folds events into tables, as a projection does, and publishes messages:
 *
 * ```ts
 * export default class Shipping extends Handler {
 *   static override manifest: HandlerManifest = {
 *     name: "shipping",
 *     subjects: ["orders.*.paid"],
 *     publishes: ["shipping.*.send"],
 *   };
 *
 *   handle(event: Event, effects: Effects) {
 *     const order = event.token(2);
 *     effects.publish(`shipping.${order}.send`, { order });
 *   }
 * }
 * ```
 *
 * What it writes and publishes may depend on the events only: not on batch boundaries, restarts, the
 * clock or randomness. The host then sends each message once, whatever happens in between.
 *
 * An error rejects the event, whatever its class; `Retry` asks the host to try again. What the
 * event wrote and published is dropped; the events before it are kept. */
export abstract class Handler extends Module {
  static manifest: HandlerManifest;

  /** Handles one event. */
  abstract handle(event: Event, effects: Effects): void;

  /** Handles a timer that fires, set with `effects.setTimer`.
   *
   * Firings have a place among the events, so the same rules apply: the result may depend on what
   * was handled before, and on the timer, and on nothing else. */
  onTimer(timer: Fired, effects: Effects): void {
    void effects;
    throw new Reject(`timer ${timer.name} fired, and this handler has no onTimer`);
  }
}
