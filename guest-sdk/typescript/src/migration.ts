/** Migrations: the entries of an older version of a module, and those that take their places. */

import { Mismatch, Reject } from "./errors";
import { parse } from "./parse";
import { readKey, type KeyOf, type KeyType, type Table, type Value } from "./tables";
import type { Type } from "./types";

/** An entry as a host stores it: its key and its value. */
export type Stored = [key: string, value: string | Uint8Array];

/** This version of a module does not know the version of the state that it is to migrate. */
export class UnknownVersion extends Reject {
  constructor(version: number) {
    super(`state version ${version} is unknown to this version of the module`);
  }
}

/** An entry of an older version. */
export class OldEntry {
  constructor(
    /** Its whole key, such as `customer/42`. */
    readonly key: string,
    /** Its value as stored. */
    readonly value: string | Uint8Array,
  ) {}

  /** Whether it belongs to a table, or is the single value of that name. */
  isIn(name: string): boolean {
    return this.key === name || this.key.startsWith(`${name}/`);
  }

  /** Its value, checked against a type. */
  json<T>(type: Type<T>): T {
    try {
      return type.check(parse(this.value));
    } catch (error) {
      throw this.#mismatch(`the value of ${this.key}`, error);
    }
  }

  /** Its key and value in the format of a table of that name; undefined if it belongs to another. */
  ofTable<const K extends KeyType, V>(name: string, key: K, value: Type<V>): [KeyOf<K>, V] | undefined {
    if (!this.isIn(name)) return undefined;
    let read: KeyOf<K>;
    try {
      read = readKey(key, this.key.slice(name.length)) as KeyOf<K>;
    } catch (error) {
      throw this.#mismatch(`the key ${this.key}`, error);
    }
    return [read, this.json(value)];
  }

  /** Its value, if it is the single value of that name. */
  ofValue<V>(name: string, type: Type<V>): V | undefined {
    return this.key === name ? this.json(type) : undefined;
  }

  #mismatch(place: string, error: unknown): unknown {
    if (!(error instanceof Mismatch)) return error;
    return new Mismatch(`${place} does not match its old type: ${error.message}`);
  }
}

/** The entries to store in place of old ones. If a key is set more than once, the last value wins. */
export class NewEntries {
  readonly stored: Stored[] = [];

  /** Stores an entry as the table would. */
  set<K, V>(table: Table<K, V>, key: K, value: V): void {
    this.stored.push(table.stored(key, value));
  }

  /** Stores a single value. */
  setValue<V>(value: Value<V>, content: V): void {
    this.stored.push(value.stored(content));
  }

  /** Stores an old entry unchanged. */
  keep({ key, value }: OldEntry): void {
    this.stored.push([key, value]);
  }
}
