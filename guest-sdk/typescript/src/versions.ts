/** Old versions of events: read as the current one (*upcasting*). */

import { isDeliberate, Reject } from "./errors";
import type { Event } from "./events";
import type { Type } from "./types";
import { refuseWaiting } from "./waiting";

/** Reads the data of an event of one version, and converts it to the newest one. */
type Read<T> = (event: Event) => T;

/** The versions of an event, each with a type of its own, read as the newest one:
 *
 * ```ts
 * const placed = firstVersion("placed", PlacedV1)
 *   .next("placed.v2", PlacedV2, (old) => ({ ...old, currency: "EUR" }))
 *   .next("placed.v3", Placed, ({ order, total_cents, currency }) => ({
 *     order,
 *     total: { cents: total_cents, currency },
 *   }));
 *
 * if (placed.has(event)) {
 *   const { order, total } = placed.of(event);
 * }
 * ```
 *
 * It keeps no state, so several modules may share it. */
export class Versions<T> {
  readonly #reads: ReadonlyMap<string, Read<T>>;

  constructor(reads: ReadonlyMap<string, Read<T>>) {
    this.#reads = reads;
  }

  /** These versions and a newer one, whose events have the type `kind`.
   *
   * The function converts the data of the version before. It must be pure: each rebuild repeats it. It
   * throws `Reject` if an old event has no form in the new version. */
  next<N>(kind: string, type: Type<N>, convert: (old: T) => N): Versions<N> {
    if (this.#reads.has(kind)) throw new TypeError(`two versions have the type ${kind}`);
    const reads = new Map<string, Read<N>>();
    for (const [old, read] of this.#reads) {
      reads.set(old, (event) => {
        const data = read(event);
        return converted(event, () => convert(data));
      });
    }
    return new Versions(reads.set(kind, (event) => event.json(type)));
  }

  /** The types of the events, the oldest version first. */
  get kinds(): string[] {
    return [...this.#reads.keys()];
  }

  /** Whether an event is of one of the versions. */
  has(event: Event): boolean {
    return this.#reads.has(event.kind);
  }

  /** The data of an event of any version, as the newest one. Throws `Reject` if it does not match the
   * type of its own version, has no form in the next one, or is of another type. */
  of(event: Event): T {
    const read = this.#reads.get(event.kind);
    if (read === undefined) {
      throw new Reject(`${shown(event)} is no version of ${this.kinds[0]}`);
    }
    return read(event);
  }
}

/** The first version of an event: its type, and that of its data. */
export function firstVersion<T>(kind: string, type: Type<T>): Versions<T> {
  return new Versions(new Map([[kind, (event: Event) => event.json(type)]]));
}

function converted<N>(event: Event, convert: () => N): N {
  let data: N;
  try {
    data = convert();
  } catch (error) {
    // Anything else is a mistake in the function, which its own class and stack show best.
    if (!(error instanceof Error && isDeliberate(error))) throw error;
    // Also of `Retry`: the same data never converts in another way.
    throw new Reject(`${shown(event)} does not become the current version: ${error.message || error.name}`);
  }
  refuseWaiting(`the conversion of ${event.kind}`, data);
  return data;
}

function shown(event: Event): string {
  return `event ${event.sequence} (${event.subject}) of type ${event.kind}`;
}
