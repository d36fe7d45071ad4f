/** Tables: typed collections over the state, decoded once and written once per batch.
 *
 * They rely on the contract: between two batches on one instance nobody else changes the state,
 * and after a failure the instance is dropped.
 *
 * A table's name and the parts of its key are joined by slashes, as in `day/42/2026-11-23`. Every
 * SDK of Foldstream writes the same text for the same key, and the texts sort like the values. */

import { Mismatch } from "./errors";
import { parse } from "./parse";
import { text, type Type, type TypeOf } from "./types";

/** Longest key that a host accepts, in bytes. */
const KEY_BYTES_MAX = 1_024;
/** Entries that all tables of an instance together keep decoded. */
const ENTRIES_MAX = 32_768;
/** Size of these entries as text, in UTF-16 units. Decoded they take several times as much. */
const TEXT_MAX = 2 << 20;
/** Most entries of a scan to request at once. */
const PAGE_ENTRIES_MAX = 1_000;
/** Between two events. */
export const NO_EVENT = -1;

/** The state that tables read and write: a host's, or one in memory for tests. */
export interface Backend {
  /** The value of a key. */
  get(key: string): string | Uint8Array | undefined;
  /** Sets many keys; undefined deletes. */
  putMany(entries: [string, string | undefined][]): void;
  /** A page of the keys from `start` to before `end`, and whether there is more. */
  scan(
    start: string,
    end: string,
    after: string | undefined,
    backwards: boolean,
    limit: number,
  ): { entries: [string, string | Uint8Array][]; more: boolean };
}

/** The type of a key: one type, or a list of 2 to 4 for a key of several parts. */
export type KeyType = Type<any> | readonly Type<any>[];

/** The TypeScript type of a key: of several parts, a tuple of them. */
export type KeyOf<D> = D extends Type<infer T>
  ? T
  : D extends readonly Type<any>[]
    ? { -readonly [I in keyof D]: TypeOf<D[I]> }
    : never;

/** A decoded entry of a table. */
interface Entry {
  /** Its key, as in the state. */
  readonly text: string;
  /** Undefined if the state has none. */
  value: any;
  /** Length of its text. */
  size: number;
  /** Index in the batch of the event that changed it last; -2 if it is written. */
  changed: number;
  /** Index of the last event that may hold the value, to change it in place. */
  held: number;
}

const WRITTEN = -2;

/** A value has no form in JSON. It blames the event that touched it last. */
export class Unwritable extends Error {
  constructor(
    readonly index: number,
    override readonly cause: Mismatch,
  ) {
    super(cause.message);
  }
}

/** The tables of one instance. */
export class State {
  readonly tables: Table<any, any>[] = [];
  /** Index in its batch of the event that is being applied; -1 between events. */
  event = NO_EVENT;
  entries = 0;
  text = 0;
  /** Queries only read. */
  writable = true;

  constructor(readonly backend: Backend) {}

  /** Writes what has changed in any table. Throws `Unwritable`. */
  flush(): void {
    const writes: [string, string | undefined][] = [];
    for (const table of this.tables) table.collect(writes);
    if (writes.length > 0) this.backend.putMany(writes);
  }

  /** Between two events: if the tables have grown too large, they start empty. */
  makeRoom(): void {
    // Never within an event, which may hold a value that it is about to change.
    if (this.entries > ENTRIES_MAX || this.text > TEXT_MAX) {
      this.flush();
      for (const table of this.tables) table.clear();
      this.entries = this.text = 0;
    }
  }
}

/** Which entries a scan covers, and in which order. */
export interface ScanOptions<K> {
  /** Only keys whose first part is this one; a list gives several leading parts. */
  under?: unknown;
  /** Only keys whose next part begins with this text. */
  startingWith?: string | undefined;
  /** Only keys from this one; with `under`, what follows the leading parts. */
  start?: unknown;
  /** Only keys before this one. */
  stop?: unknown;
  /** Only keys up to this one, which belongs to them. */
  through?: unknown;
  /** Continue behind this key, in the direction of the scan. */
  after?: K | undefined;
  /** From the largest key down. */
  backwards?: boolean | undefined;
  /** At most this many. */
  limit?: number | undefined;
}

/** A typed collection: keys of type `K` in order, values of type `V` as JSON.
 *
 * It works like a `Map`: `get`, `set`, `has`, `delete`. To change a value in place, use `edit`:
 * what `get` returns is a copy. It keeps what it reads or writes decoded, and writes changes once
 * at the end of a batch. */
export class Table<K, V> {
  readonly #entries = new Map<string, Entry>();
  /** The same entries by a text that is quicker to make than that of the state. */
  readonly #quick = new Map<string, Entry>();
  #changed: Entry[] = [];
  readonly #parts: readonly Type<any>[];

  /** How keys begin. */
  readonly name: string;

  /** Projections make theirs with `this.table`. With an owner it is a part of a table that the SDK
   * keeps for several owners. */
  constructor(
    name: string,
    readonly key: KeyType,
    readonly type: Type<V>,
    readonly state: State,
    owner?: string,
  ) {
    if (!/^[a-z0-9-]{1,64}$/.test(name)) {
      throw new TypeError(`table name "${name}": use 1 to 64 lower-case letters, digits and hyphens`);
    }
    this.name = owner === undefined ? name : `${name}/${owner}`;
    // A part of a table is not in another table.
    const clashes = ({ name: other }: Table<any, any>) =>
      `${this.name}/`.startsWith(`${other}/`) || other.startsWith(`${this.name}/`);
    if (state.tables.some(clashes)) throw new TypeError(`two tables are named "${this.name}"; rename one`);
    // A single value has a key without parts.
    this.#parts = Array.isArray(key) ? key : [key as Type<any>];
    if (this.#parts.length > 4 || this.#parts.some((part) => part.part === undefined)) {
      throw new TypeError(`table ${name}: a key is 1 to 4 texts, integers, dates, times or bools`);
    }
    state.tables.push(this);
  }

  /** The value of a key; undefined if there is none. It is a copy: changing it changes nothing. */
  get(key: K): V | undefined {
    const value = this.#entry(key).value;
    return value === undefined || !this.type.changes ? value : this.type.check(value);
  }

  /** Whether there is a value for a key. */
  has(key: K): boolean {
    return this.#entry(key).value !== undefined;
  }

  /** Sets the value of a key. */
  set(key: K, value: V): void {
    const checked = this.#check(value);
    this.#mark(this.#entry(key, false)).value = checked;
  }

  /** The value of a key, to be changed in place until the event ends.
   *
   * If there is none, it begins with the type's own: zeros, empty texts and lists. Values that
   * cannot change, such as numbers and texts, are set instead:
   * `pages.set(page, (pages.get(page) ?? 0) + 1)`. */
  edit(key: K): V {
    const { type, name } = this;
    if (!type.changes) throw new TypeError(`values of table ${name} cannot be changed in place; set them`);
    const entry = this.#mark(this.#entry(key));
    if (entry.value === undefined) {
      if (type.initial === undefined) {
        throw new TypeError(`table ${name} has no value to begin with; give each field a default`);
      }
      entry.value = type.initial();
    }
    entry.held = this.state.event;
    return entry.value;
  }

  /** Removes the entry of a key; does nothing if it does not exist. */
  delete(key: K): void {
    this.#mark(this.#entry(key, false)).value = undefined;
  }

  /** Entries in the order of their keys, read page by page.
   *
   * The last seven days of a customer up to a day:
   * `days.scan({ under: "42", through: day, backwards: true, limit: 7 })`. */
  *scan(options: ScanOptions<K> = {}): Generator<[K, V]> {
    for (const page of this.#pages(options)) {
      for (const [text, value] of page) yield [this.#read(text), this.#decode(text, value)];
    }
  }

  /** Removes all entries that a scan covers, and says how many. Nothing is decoded, so this also
   * removes values that no longer fit their type. */
  deleteScan(options: ScanOptions<K>): number {
    let count = 0;
    for (const page of this.#pages(options)) {
      for (const [text] of page) {
        const entry = this.#entries.get(text) ?? this.#add(text, undefined, 0);
        this.#mark(entry).value = undefined;
      }
      count += page.length;
    }
    return count;
  }

  /** Key and value of an entry, as they are stored. */
  stored(key: K, value: V): [string, string] {
    return [this.#text(key), JSON.stringify(this.#check(value))];
  }

  /** Adds what has changed to what is to be written. */
  collect(writes: [string, string | undefined][]): void {
    if (this.#changed.length === 0) return;
    const kept: Entry[] = [];
    for (const entry of this.#changed) {
      const text = entry.text;
      let size = 0;
      if (entry.value === undefined) {
        writes.push([text, undefined]);
      } else {
        const value = this.#encode(text, entry);
        writes.push([text, value]);
        size = value.length;
      }
      this.state.text += size - entry.size;
      entry.size = size;
      // The event that is being applied may hold the value, and change it again.
      if (entry.held === this.state.event && entry.held >= 0) kept.push(entry);
      else entry.changed = WRITTEN;
    }
    this.#changed = kept;
  }

  /** Drops all entries, which were written before. */
  clear(): void {
    this.#entries.clear();
    this.#quick.clear();
  }

  #encode(text: string, entry: Entry): string {
    try {
      // Also a value that was checked before: it may have been changed in place.
      const checked = this.type.changes ? this.type.check(entry.value) : entry.value;
      return JSON.stringify(checked);
    } catch (error) {
      if (!(error instanceof Mismatch)) throw error;
      throw new Unwritable(entry.changed, new Mismatch(`the value of ${text} cannot be stored: ${error.message}`));
    }
  }

  #check(value: V): V {
    try {
      return this.type.check(value);
    } catch (error) {
      if (!(error instanceof Mismatch)) throw error;
      throw new Mismatch(`a value for table ${this.name}: ${error.message}`);
    }
  }

  #entry(key: K, load = true): Entry {
    const quick = this.#parts.length === 1 ? (typeof key === "string" ? key : undefined) : quickText(key);
    const known = quick === undefined ? undefined : this.#quick.get(quick);
    if (known !== undefined) return known;
    const text = this.#text(key);
    // What is set or removed need not be read first.
    const entry = this.#entries.get(text) ?? (load ? this.#load(text) : this.#add(text, undefined, 0));
    if (quick !== undefined) this.#quick.set(quick, entry);
    return entry;
  }

  #load(text: string): Entry {
    const stored = this.state.backend.get(text);
    return stored === undefined
      ? this.#add(text, undefined, 0)
      : this.#add(text, this.#decode(text, stored), stored.length);
  }

  #mark(entry: Entry): Entry {
    if (entry.changed === WRITTEN) {
      if (!this.state.writable) throw new TypeError(`a query cannot change table ${this.name}`);
      this.#changed.push(entry);
    }
    // The event that changed it last is blamed if the value cannot be encoded.
    entry.changed = this.state.event;
    return entry;
  }

  #add(text: string, value: unknown, size: number): Entry {
    const entry: Entry = { text, value, size, changed: WRITTEN, held: WRITTEN };
    this.#entries.set(text, entry);
    this.state.entries += 1;
    this.state.text += size + text.length;
    return entry;
  }

  #decode(text: string, stored: string | Uint8Array): V {
    try {
      return this.type.check(parse(stored));
    } catch (error) {
      if (!(error instanceof Mismatch)) throw error;
      throw new Mismatch(
        `the value of ${text} does not match its type: ${error.message}; raise the state version if ` +
          "values change their format",
      );
    }
  }

  #text(key: K): string {
    const text = this.name + write(this.#parts, key);
    // Refused here with a message that names the limit; the host would end the call. A UTF-16 unit
    // takes at most three bytes.
    if (text.length * 3 > KEY_BYTES_MAX) checkLength(text);
    return text;
  }

  #read(text: string): K {
    try {
      return readKey(this.key, text.slice(this.name.length)) as K;
    } catch (error) {
      throw error instanceof Mismatch ? error.within(`key ${text}`) : error;
    }
  }

  *#pages(options: ScanOptions<K>): Generator<[string, string | Uint8Array][]> {
    const [start, end] = this.#span(options);
    let after = options.after === undefined ? undefined : this.#text(options.after);
    let left = options.limit ?? Infinity;
    let more = isBefore(start, end);
    while (more && left > 0) {
      // The host scans what it has, so the writes of this batch have to be there first.
      this.state.flush();
      const limit = Math.min(left, PAGE_ENTRIES_MAX);
      const page = this.state.backend.scan(start, end, after, options.backwards ?? false, limit);
      if (page.entries.length === 0) return;
      after = page.entries.at(-1)![0];
      left -= page.entries.length;
      more = page.more;
      yield page.entries;
    }
  }

  /** The keys of a scan, as texts: from the first to before the second. */
  #span({ under, startingWith, start, stop, through }: ScanOptions<K>): [string, string] {
    let stem = this.name;
    let rest = this.#parts;
    if (under !== undefined) {
      const leading = Array.isArray(under) ? under : [under];
      if (leading.length >= rest.length) {
        throw new TypeError(`table ${this.name}: \`under\` takes fewer parts than a key has`);
      }
      stem += write(rest.slice(0, leading.length), leading);
      rest = rest.slice(leading.length);
    }
    let low = `${stem}/`;
    // Zero follows the slash.
    let high = `${stem}0`;
    if (startingWith) {
      // A part in the form that it has in keys; the last character there is never ends it.
      low += rest[0]!.part!.write(text.check(startingWith));
      high = `${low}\u{10ffff}`;
    }
    const most = (one: string, other: string) => (isBefore(one, other) ? other : one);
    const least = (one: string, other: string) => (isBefore(one, other) ? one : other);
    if (start !== undefined) low = most(low, stem + write(rest, start));
    if (stop !== undefined) high = least(high, stem + write(rest, stop));
    // The text after a key is the key with the lowest character appended.
    if (through !== undefined) high = least(high, `${stem}${write(rest, through)}\0`);
    return [low, high];
  }
}

/** A single value under a name of its own; projections make theirs with `this.value`. */
export class Value<V> {
  readonly #table: Table<[], V>;

  constructor(name: string, type: Type<V>, state: State) {
    this.#table = new Table<[], V>(name, [], type, state);
  }

  /** The value; undefined if there is none. It is a copy: changing it changes nothing. */
  get(): V | undefined {
    return this.#table.get([]);
  }

  /** Sets the value. */
  set(value: V): void {
    this.#table.set([], value);
  }

  /** The value, to be changed in place until the event ends; see `Table.edit`. */
  edit(): V {
    return this.#table.edit([]);
  }

  /** Removes the value. */
  delete(): void {
    this.#table.delete([]);
  }

  /** Key and value of its entry, as they are stored. */
  stored(value: V): [string, string] {
    return this.#table.stored([], value);
  }
}

/** A key from what follows the name of a table. Throws `Mismatch`. */
export function readKey(key: KeyType, behind: string): unknown {
  const types: readonly Type<any>[] = Array.isArray(key) ? key : [key as Type<any>];
  const pieces = behind.split("/");
  if (pieces.shift() !== "" || pieces.length !== types.length) {
    throw new Mismatch(`expected ${types.length} parts after the name of the table`);
  }
  const parts = pieces.map((piece, place) => types[place]!.part!.read(piece));
  return Array.isArray(key) ? parts : parts[0];
}

/** Compares texts by code points, as hosts do; `<` compares UTF-16 units. */
export function isBefore(one: string, other: string): boolean {
  const length = Math.min(one.length, other.length);
  for (let place = 0; place < length; place++) {
    const [left, right] = [one.charCodeAt(place), other.charCodeAt(place)];
    if (left !== right) {
      // Surrogates stand for characters beyond all others.
      const [leftHigh, rightHigh] = [left >= 0xd800 && left < 0xe000, right >= 0xd800 && right < 0xe000];
      return leftHigh === rightHigh ? left < right : rightHigh;
    }
  }
  return one.length < other.length;
}

/** A text that differs for any two keys of several parts: only what follows a length may have
 * anything in it. */
function quickText(key: unknown): string | undefined {
  if (!Array.isArray(key)) return undefined;
  let text = "";
  for (const part of key) {
    if (typeof part === "string") text += `${part.length}:${part}`;
    else if (typeof part === "number") text += `#${part};`;
    else return undefined;
  }
  return text;
}

function write(parts: readonly Type<any>[], key: unknown): string {
  const values = parts.length === 1 && !Array.isArray(key) ? [key] : key;
  if (!Array.isArray(values) || values.length !== parts.length) {
    throw new Mismatch(`expected a key of ${parts.length} parts`);
  }
  let written = "";
  for (let place = 0; place < parts.length; place++) {
    const type = parts[place]!;
    written += `/${type.part!.write(type.check(values[place]))}`;
  }
  return written;
}

/** How many bytes a text has in UTF-8. */
export function utf8Length(text: string): number {
  let bytes = 0;
  for (const character of text) {
    const point = character.codePointAt(0)!;
    bytes += point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
  }
  return bytes;
}

function checkLength(text: string): void {
  const bytes = utf8Length(text);
  if (bytes > KEY_BYTES_MAX) {
    throw new Mismatch(`a key has ${bytes} bytes; at most ${KEY_BYTES_MAX} are allowed`);
  }
}
