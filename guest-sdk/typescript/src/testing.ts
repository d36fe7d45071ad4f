/** Tests of projections and handlers without Wasm and without a host, with any test runner.
 *
 * ```ts
 * const visits = new Harness(Visits);
 * visits.given(event("visits.home"), event("visits.home"), event("visits.about"));
 *
 * assert.equal(visits.get("page/home"), 2);
 * assert.equal(visits.query("visits", "about"), 1);
 * visits.assertSameForAnyBatching();
 *
 * const shipping = new Harness(Shipping);
 * shipping.given(event("orders.7.paid"));
 *
 * assert.deepEqual(shipping.published(), [{ subject: "shipping.7.send", type: "send", data: { order: "7" } }]);
 * ``` */

import type { Message, Outbox, TimerChange } from "./effects";
import { Event, subjectMatches } from "./events";
import { Instance, type Failed } from "./instance";
import { publishesOf, wantsHeaders, type HandlerManifest } from "./manifest";
import type { ModuleClass } from "./module";
import { isBefore, type Backend } from "./tables";
import { nanosecondsOf } from "./time";
import { Fired, type Timer } from "./timers";

/** An event to apply. */
export interface GivenEvent {
  subject: string;
  /** JSON; a text or bytes is the data as it is. */
  data?: unknown;
  /** By default the last token of the subject. */
  type?: string | undefined;
  /** RFC 3339; by default one second later than that of the event before. */
  time?: string | undefined;
  /** By lower-case name. */
  headers?: Record<string, string> | undefined;
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

/** A message that a handler published, with what it was given. */
export interface PublishedMessage {
  subject: string;
  /** The given one, or the last token of the subject. */
  type: string;
  /** As JSON; other text as a string, bytes as they are. */
  data: unknown;
  headers?: Record<string, string> | undefined;
  key?: string | undefined;
  notBeforeUs?: number | undefined;
  timeToLiveS?: number | undefined;
  expectedLast?: { subject: string; sequence: number } | undefined;
}

/** Most timers that fire while a test lets time pass. */
const FIRINGS_MAX = 100_000;

/** A state, timers and messages in memory, with which a batch either becomes visible or is dropped. */
class Memory implements Backend, Outbox {
  entries = new Map<string, string>();
  timers = new Map<string, Timer>();
  published: Message[] = [];
  #before = { entries: this.entries, timers: this.timers, published: this.published };
  readonly #manifest: HandlerManifest;

  constructor(manifest: HandlerManifest) {
    this.#manifest = manifest;
  }

  begin(): void {
    const { entries, timers, published } = this;
    this.#before = { entries: new Map(entries), timers: new Map(timers), published: [...published] };
  }

  rollBack(): void {
    Object.assign(this, this.#before);
  }

  /** Refuses what a host would refuse. */
  publish(_cause: number, messages: readonly Message[]): void {
    const declared = publishesOf(this.#manifest);
    for (const { subject, expectedLast } of messages) {
      if (!declared.some((pattern) => subjectMatches(pattern, subject))) {
        throw new RangeError(`it publishes to ${subject}, which its manifest does not declare; add it to publishes`);
      }
      if (expectedLast?.subject !== undefined && !subjectMatches(expectedLast.subject, subject)) {
        const { subject: covered } = expectedLast;
        throw new RangeError(`a message to ${subject} expects the last sequence of ${covered}, which does not cover it`);
      }
    }
    this.published.push(...messages);
  }

  changeTimers(_cause: number, changes: readonly TimerChange[]): void {
    for (const change of changes) {
      if ("cancel" in change) {
        this.timers.delete(change.cancel);
        continue;
      }
      if (!this.#manifest.timers) {
        throw new RangeError("it sets timers, which its manifest does not declare; add timers: true");
      }
      this.timers.set(change.set.name, change.set);
    }
  }

  /** The pending timers, in the order in which they fire. */
  pending(): Timer[] {
    const isFirst = (one: Timer, other: Timer) => one.atUs - other.atUs || (isBefore(one.name, other.name) ? -1 : 1);
    return [...this.timers.values()].sort(isFirst);
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

/** A projection or handler over a state in memory. */
export class Harness {
  readonly #module: ModuleClass;
  readonly #memory: Memory;
  readonly #begun: ReadonlyMap<string, string>;
  #instance: Instance | undefined;
  /** Events and firings, in their order. */
  #applied: (Event | Fired)[] = [];
  #nextSequence = 1;
  #nextTime = nanosecondsOf("2026-01-01T00:00:00Z")!;

  /** With entries that it begins with, as after a migration. */
  constructor(module: ModuleClass, entries: ReadonlyMap<string, string> = new Map()) {
    this.#module = module;
    this.#begun = entries;
    this.#memory = new Memory(module.manifest);
    this.#memory.entries = new Map(entries);
    // Mistakes in declarations are thrown here, not by the first event.
    this.#open();
  }

  /** A module over the state that it migrates from version `fromVersion`, before any further event.
   * The old entries may come from a harness of the older version, with `entries()`. Throws what
   * `migrate` threw. */
  static migrated(module: ModuleClass, fromVersion: number, old: Record<string, unknown>): Harness {
    // A host hands them over in the order of the keys.
    const keys = Object.keys(old).sort((one, other) => (isBefore(one, other) ? -1 : 1));
    const page = keys.map((key): [string, string] => [key, JSON.stringify(old[key])]);
    const memory = new Memory(module.manifest);
    const made = new Instance(module, memory, memory).migrate(fromVersion, page);
    return new Harness(module, new Map(made as [string, string][]));
  }

  /** Applies events, as one batch; returns itself.
   *
   * Like a host, it ignores events that the manifest's subjects do not match. If one fails, it drops
   * everything that the batch wrote and published, applies the events before the failing one again,
   * and throws what the module threw. */
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
    const answer = this.#open().query(name, args === undefined ? "" : JSON.stringify(args));
    if (answer === undefined) throw new RangeError(`the module has no query ${name}`);
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

  /** What the handler has published so far, in order. */
  published(): PublishedMessage[] {
    return this.#memory.published.map(shown);
  }

  /** The pending timers, in the order in which they fire. */
  timers(): Timer[] {
    return this.#memory.pending().map(given);
  }

  /** Lets time pass after the last event, in microseconds, and fires the timers that are due
   * meanwhile, in order, each at its time: `payments.after(minutes(30))`.
   *
   * If one fails it stays pending, like those after it; everything that it did is dropped, and what
   * the handler threw is thrown. */
  after(spanUs: number): this {
    const until = this.#nextTime + BigInt(spanUs) * 1_000n;
    for (let firings = 0; firings < FIRINGS_MAX; firings++) {
      const [timer] = this.#memory.pending();
      const at = timer === undefined ? undefined : BigInt(timer.atUs) * 1_000n;
      if (timer === undefined || at === undefined || at > until) {
        this.#nextTime = until;
        return this;
      }
      // Never before an event that came already: time does not go back in a stream.
      const time = at > this.#nextTime ? at : this.#nextTime;
      const firing = new Fired(timer.name, timer.atUs, Number(time / 1_000n), this.#nextSequence, timer.key);
      // Firings are stored in the stream, so they have sequences like events.
      this.#nextSequence += 1;
      this.#nextTime = time;
      const failed = this.#apply([firing]);
      if (failed !== undefined) throw failed.error;
      this.#applied.push(firing);
    }
    throw new RangeError(`more than ${FIRINGS_MAX} timers fired: timers set each other without end`);
  }

  /** Drops everything that is not in the state, as a restart does. */
  restart(): this {
    this.#instance = undefined;
    return this;
  }

  /** Applies all events so far again in batches of other sizes, with and without a restart after
   * each, and compares the stored entries, the messages and the pending timers. Throws if they
   * differ. */
  assertSameForAnyBatching(): void {
    // Small batches, odd ones, one that splits most tests unevenly, and all at once.
    for (const size of [1, 2, 3, 7, 64, Math.max(1, this.#applied.length)]) {
      for (const restarts of [false, true]) {
        const other = new Harness(this.#module, this.#begun);
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
    const named = (harness: Harness): [string, string][] => [
      ...harness.#memory.entries,
      ...harness.timers().map((timer): [string, string] => [`timer ${timer.name}`, JSON.stringify(timer)]),
      ...harness.published().map((message, place): [string, string] => [`message ${place}`, JSON.stringify(message)]),
    ];
    const [ours, theirs] = [new Map(named(this)), new Map(named(other))];
    for (const key of new Set([...ours.keys(), ...theirs.keys()])) {
      if (ours.get(key) !== theirs.get(key)) {
        throw new Error(
          `the result depends on the batches: ${key} is ${ours.get(key) ?? "nothing"} as given, and ` +
            `${theirs.get(key) ?? "nothing"} ${how}, so some of what the module needs is not in its tables`,
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
    const manifest: HandlerManifest = this.#module.manifest;
    if (!manifest.subjects.some((pattern) => subjectMatches(pattern, subject))) return [];
    const named = new Map(wantsHeaders(manifest) ? Object.entries(headers).sort() : []);
    const raw = typeof data === "string" || data instanceof Uint8Array ? data : JSON.stringify(data);
    return [new Event(sequence, Number(timeNs / 1_000n), subject, type ?? subject.split(".").at(-1)!, named, raw)];
  }

  #open(): Instance {
    return new Instance(this.#module, this.#memory, this.#memory);
  }

  #apply(batch: readonly (Event | Fired)[]): Failed | undefined {
    this.#instance ??= this.#open();
    this.#memory.begin();
    let failed: Failed | undefined;
    for (let done = 0; failed === undefined && done < batch.length; ) {
      // Firings go one by one, and events up to the next firing in one batch.
      const [count, part] = this.#call(this.#instance, batch.slice(done));
      if (part !== undefined) failed = { ...part, index: part.index + done };
      done += count;
    }
    if (failed !== undefined) {
      // What the instance holds no longer matches the state.
      this.#memory.rollBack();
      this.#instance = undefined;
    }
    return failed;
  }

  /** One call of the module with what comes next, and how much that was. */
  #call(instance: Instance, rest: readonly (Event | Fired)[]): [number, Failed | undefined] {
    const [first] = rest;
    if (first instanceof Fired) {
      // It is pending no more, and may be set again under its name.
      return [1, this.#memory.timers.delete(first.name) ? instance.fire([first]) : undefined];
    }
    const end = rest.findIndex((item) => item instanceof Fired);
    const events = (end < 0 ? rest : rest.slice(0, end)) as Event[];
    return [events.length, instance.apply(events)];
  }
}

/** An object without the fields that were not given: what a test compares. */
function given<T extends object>(value: T): T {
  return Object.fromEntries(Object.entries(value).filter(([, field]) => field !== undefined)) as T;
}

function shown({ subject, type, headers, data, expectedLast, ...rest }: Message): PublishedMessage {
  return given({
    subject,
    type: type ?? subject.split(".").at(-1)!,
    data: parsed(data),
    headers: headers.length === 0 ? undefined : Object.fromEntries(headers),
    ...rest,
    expectedLast: expectedLast && { subject: expectedLast.subject ?? subject, sequence: expectedLast.sequence },
  });
}

function parsed(data: string | Uint8Array): unknown {
  if (typeof data !== "string") return data;
  try {
    return JSON.parse(data);
  } catch {
    return data;
  }
}
