/** Tests of projections without Wasm and without a host, with any test runner.
 *
 * ```ts
 * const visits = new Harness(Visits);
 * visits.given(event("visits.home"), event("visits.home"), event("visits.about"));
 *
 * assert.equal(visits.get("page/home"), 2);
 * assert.equal(visits.query("visits", "about"), 1);
 * visits.assertSameForAnyBatching();
 * ``` */

import { Event, subjectMatches } from "./events";
import { Instance, type Failed, type ProjectionClass } from "./projection";
import { isBefore, type Backend } from "./tables";
import { nanosecondsOf } from "./time";

/** An event to apply. */
export interface GivenEvent {
  subject: string;
  /** JSON; a text or bytes is the data as it is. */
  data?: unknown;
  /** By default the last token of the subject. */
  type?: string;
  /** RFC 3339; by default one second later than that of the event before. */
  time?: string;
  /** By lower-case name. */
  headers?: Record<string, string>;
}

/** An event with JSON data. */
export function event(subject: string, data: unknown = {}, more: Omit<GivenEvent, "subject" | "data"> = {}): GivenEvent {
  return { subject, data, ...more };
}

/** Reads events from lines of JSON, in the format of `foldstream events import`. */
export function eventsFromNdjson(text: string): GivenEvent[] {
  const read = (line: string, number: number): GivenEvent[] => {
    if (line.trim() === "") return [];
    try {
      const parsed = JSON.parse(line) as GivenEvent;
      if (typeof parsed.subject !== "string") throw new TypeError("it has no subject");
      return [parsed];
    } catch (error) {
      throw new Error(`line ${number + 1} is no event`, { cause: error });
    }
  };
  return text.split("\n").flatMap(read);
}

/** A state in memory, with which a batch either becomes visible or is dropped. */
class Memory implements Backend {
  entries = new Map<string, string>();
  #before = this.entries;

  begin(): void {
    this.#before = new Map(this.entries);
  }

  rollBack(): void {
    this.entries = this.#before;
  }

  get(key: string): string | undefined {
    return this.entries.get(key);
  }

  putMany(entries: [string, string | undefined][]): void {
    for (const [key, value] of entries) {
      if (value === undefined) this.entries.delete(key);
      else this.entries.set(key, value);
    }
  }

  scan(start: string, end: string, after: string | undefined, backwards: boolean, limit: number) {
    const covered = (key: string) =>
      !isBefore(key, start) &&
      isBefore(key, end) &&
      (after === undefined || (backwards ? isBefore(key, after) : isBefore(after, key)));
    const keys = this.sorted().filter(covered);
    if (backwards) keys.reverse();
    const entries = keys.slice(0, limit).map((key): [string, string] => [key, this.entries.get(key)!]);
    return { entries, more: keys.length > limit };
  }

  sorted(): string[] {
    return [...this.entries.keys()].sort((one, other) => (isBefore(one, other) ? -1 : 1));
  }
}

/** A projection over a state in memory. */
export class Harness {
  readonly #projection: ProjectionClass;
  readonly #memory = new Memory();
  #instance: Instance | undefined;
  #applied: Event[] = [];
  #nextSequence = 1;
  #nextTime = nanosecondsOf("2026-01-01T00:00:00Z")!;

  constructor(projection: ProjectionClass) {
    this.#projection = projection;
    // Mistakes in declarations are thrown here, not by the first event.
    new Instance(projection, this.#memory);
  }

  /** Applies events, as one batch; returns itself.
   *
   * Like a host, it ignores events that the manifest's subjects do not match. If one fails, it drops
   * everything that the batch wrote, applies the events before the failing one again, and throws
   * what the projection threw. */
  given(...events: GivenEvent[]): this {
    const batch = events.flatMap((one) => this.#store(one));
    const failed = this.#apply(batch);
    const kept = failed === undefined ? batch : batch.slice(0, failed.index);
    if (failed !== undefined && this.#apply(kept) !== undefined) {
      throw new Error("the events before the failing one fail on their own", { cause: failed.error });
    }
    this.#applied.push(...kept);
    if (failed !== undefined) throw failed.error;
    return this;
  }

  /** Runs a query with its arguments as JSON, and returns its answer as parsed JSON. Throws what the
   * query threw, and a `RangeError` if there is no such query. */
  query(name: string, args?: unknown): any {
    // A fresh instance, as in a host: what is only in memory is not there.
    const instance = new Instance(this.#projection, this.#memory);
    const answer = instance.query(name, args === undefined ? "" : JSON.stringify(args));
    if (answer === undefined) throw new RangeError(`the projection has no query ${name}`);
    return JSON.parse(answer);
  }

  /** The stored value of a key such as `customer/42`, as parsed JSON; undefined if there is none. */
  get(key: string): any {
    const text = this.#memory.get(key);
    return text === undefined ? undefined : JSON.parse(text);
  }

  /** The stored entries whose keys begin with a text, in order. */
  entries(prefix = ""): Record<string, any> {
    const keys = this.#memory.sorted().filter((key) => key.startsWith(prefix));
    return Object.fromEntries(keys.map((key) => [key, this.get(key)]));
  }

  /** Drops everything that is not in the state, as a restart does. */
  restart(): this {
    this.#instance = undefined;
    return this;
  }

  /** Applies all events so far again in batches of other sizes, with and without a restart after
   * each, and compares the stored entries. Throws if they differ. */
  assertSameForAnyBatching(): void {
    // Small batches, odd ones, one that splits most tests unevenly, and all at once.
    for (const size of [1, 2, 3, 7, 64, Math.max(1, this.#applied.length)]) {
      for (const restarts of [false, true]) {
        const other = new Harness(this.#projection);
        for (let start = 0; start < this.#applied.length; start += size) {
          const failed = other.#apply(this.#applied.slice(start, start + size));
          if (failed !== undefined) throw new Error(`in batches of ${size}`, { cause: failed.error });
          if (restarts) other.restart();
        }
        this.#compare(other, `in batches of ${size}${restarts ? ", restarted after each" : ""}`);
      }
    }
  }

  #compare(other: Harness, how: string): void {
    const [ours, theirs] = [this.#memory.entries, other.#memory.entries];
    for (const key of new Set([...ours.keys(), ...theirs.keys()])) {
      if (ours.get(key) !== theirs.get(key)) {
        throw new Error(
          `the result depends on the batches: ${key} is ${ours.get(key) ?? "nothing"} as given, and ` +
            `${theirs.get(key) ?? "nothing"} ${how}, so some of what the projection needs is not in its tables`,
        );
      }
    }
  }

  #store({ subject, data = {}, type, time, headers = {} }: GivenEvent): Event[] {
    const sequence = this.#nextSequence;
    // Also of events that do not match: their sequences are missing, as in a stream.
    this.#nextSequence += 1;
    const timeNs = time === undefined ? this.#nextTime : nanosecondsOf(time);
    if (timeNs === undefined) throw new RangeError(`${time} is no time`);
    this.#nextTime = timeNs + 1_000_000_000n;
    const manifest = this.#projection.manifest;
    if (!manifest.subjects.some((pattern) => subjectMatches(pattern, subject))) return [];
    const named = new Map(manifest.headers ? Object.entries(headers).sort() : []);
    const raw = typeof data === "string" || data instanceof Uint8Array ? data : JSON.stringify(data);
    return [new Event(sequence, Number(timeNs / 1_000n), subject, type ?? subject.split(".").at(-1)!, named, raw)];
  }

  #apply(batch: readonly Event[]): Failed | undefined {
    this.#instance ??= new Instance(this.#projection, this.#memory);
    this.#memory.begin();
    const failed = this.#instance.apply(batch);
    if (failed !== undefined) {
      // What the instance holds no longer matches the state.
      this.#memory.rollBack();
      this.#instance = undefined;
    }
    return failed;
  }
}
