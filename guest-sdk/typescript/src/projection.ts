/** The class that a projection extends. */

import type { Event } from "./events";
import type { Manifest } from "./manifest";
import { Module } from "./module";

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
export abstract class Projection extends Module {
  static manifest: Manifest;

  /** Applies one event to the tables. */
  abstract apply(event: Event): void;
}
