/** What hosts list of sagas: an index by status, step and time, and counts. Its form is described in
 * `docs/sagas.md`, so that hosts and SDKs of other languages agree about it. */

import { Table, type State } from "../tables";
import { map, nothing, record, text, timestamp, u32, u64, withDefault, type TypeOf } from "../types";
import { FORMAT, hasEnded, type Instance, type Status } from "./instance";

/** In place of a step, for instances that have none. */
const NO_STEP = "-";

/** Why an event changed nothing: it was there before; it answers a step that was given up or undone;
 * it answers a step that was not begun; there is no instance with its key; its instance has ended; a
 * timer that its instance does not wait for any more. */
export type Ignored = "duplicate" | "late" | "early" | "unknown" | "ended" | "stale-timer";

/** Where an instance is listed, so that those that have waited longest for a step come first. */
export interface Place {
  status: Status;
  step: string;
  since: string;
  key: string;
}

export function placeOf<D>({ status, step, since }: Instance<D>, key: string): Place {
  return { status, step: step ?? NO_STEP, since, key };
}

const Counts = record({
  format: u32,
  /** Instances by `<status>/<step>`. */
  now: withDefault(map(u64), {}),
  /** Instances that ended, by status, with those that are not kept any more. */
  ended: withDefault(map(u64), {}),
  /** Events that changed nothing, by what they were. */
  ignored: withDefault(map(u64), {}),
});

/** The index and the counts of a saga. */
export class Listing {
  /** `saga-index/<saga>/<status>/<step>/<since>/<key>` */
  readonly #index: Table<[string, string, string, string], null>;
  /** `saga-count/<saga>` */
  readonly #counts: Table<[], TypeOf<typeof Counts>>;

  constructor(state: State, saga: string) {
    this.#index = new Table("saga-index", [text, text, timestamp, text], nothing, state, saga);
    this.#counts = new Table("saga-count", [], Counts, state, saga);
  }

  /** An instance moves from one place to another, is new, or is removed. */
  moved(from: Place | undefined, to: Place | undefined): void {
    if (from && to && from.status === to.status && from.step === to.step && from.since === to.since) return;
    if (from) this.#index.delete([from.status, from.step, from.since, from.key]);
    if (to) this.#index.set([to.status, to.step, to.since, to.key], null);
    this.#count(({ now, ended }) => {
      if (from) add(now, `${from.status}/${from.step}`, -1);
      if (to) add(now, `${to.status}/${to.step}`, 1);
      const before = from !== undefined && hasEnded(from.status);
      if (!before && to && hasEnded(to.status)) add(ended, to.status, 1);
      const known = before ? ended[from.status] : undefined;
      // An operator must deal with it after all.
      if (known && to && !hasEnded(to.status)) ended[from!.status] = known - 1;
    });
  }

  /** An event changed nothing. */
  ignored(why: Ignored): void {
    this.#count(({ ignored }) => add(ignored, why, 1));
  }

  #count(change: (counts: TypeOf<typeof Counts>) => void): void {
    const counts = this.#counts.get([]) ?? { format: FORMAT, now: {}, ended: {}, ignored: {} };
    change(counts);
    const { format, now, ended, ignored } = counts;
    this.#counts.set([], { format, now: sorted(now), ended: sorted(ended), ignored: sorted(ignored) });
  }
}

/** Changes a count; one that reaches zero is left out. */
function add(counts: Record<string, number>, name: string, by: 1 | -1): void {
  const count = (counts[name] ?? 0) + by;
  if (count > 0) counts[name] = count;
  else delete counts[name];
}

/** In the order of their names, as all SDKs store them. */
function sorted(counts: Record<string, number>): Record<string, number> {
  return Object.fromEntries(Object.entries(counts).sort(([one], [other]) => (one < other ? -1 : 1)));
}
