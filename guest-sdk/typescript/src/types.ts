/** Types of JSON values: checked when they are read, in one form when they are written.
 *
 * A type is a value, and gives TypeScript its type: `type Order = TypeOf<typeof Order>`. Checking
 * makes a copy with the fields in the order of the type, so that every SDK stores the same bytes;
 * fields that the type does not have are left out. */

import { Mismatch } from "./errors";
import { numberOf } from "./parse";
import { daysOf, nanosecondsOf, timeOf } from "./time";

/** A type of JSON values. */
export interface Type<T> {
  /** A checked copy of a value. Throws `Mismatch`. Of parsed JSON, an integer that is written as a
   * fraction, such as `1.0`, is a symbol, because it may have been rounded. */
  check(value: unknown): T;
  /** Whether values can change in place, as objects and lists do. */
  readonly changes: boolean;
  /** The value that an entry begins with when it is changed in place, if there is one. */
  readonly initial?: (() => T) | undefined;
  /** The value of a field that is left out of a record, if it may be. */
  readonly absent?: (() => T) | undefined;
  /** How values are parts of keys, if they can be. */
  readonly part?: Part<T> | undefined;
  /** The condition under which a variable is a value that needs no copy, as code: `record` checks its
   * fields in place with it. */
  readonly fits?: ((variable: string) => string) | undefined;
}

/** How values of a type are written as a part of a key. */
export interface Part<T> {
  write(value: T): string;
  /** Throws `Mismatch`. */
  read(text: string): T;
}

/** The TypeScript type of a type's values. */
export type TypeOf<D> = D extends Type<infer T> ? T : never;

function shown(value: unknown): string {
  if (value === null) return "null";
  if (value === undefined) return "nothing";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "string") return "a text";
  // A number as it was written, or the member that occurs twice.
  if (typeof value === "symbol") return value.description ?? "a symbol";
  if (typeof value === "object") return isPlain(value) ? "an object" : `a value of class ${value.constructor?.name}`;
  return String(value);
}

/** Whether an object has its fields only: not of a class, such as `Date` or `Map`, whose contents are
 * no fields. */
function isPlain(value: object): boolean {
  const prototype = Object.getPrototypeOf(value);
  // Objects of another realm are plain too.
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

function mismatch(expected: string, value: unknown): Mismatch {
  return new Mismatch(`expected ${expected}, found ${shown(value)}`);
}

function plain<T>(
  expected: string,
  is: (value: unknown) => boolean,
  part?: Part<T>,
  fits?: (variable: string) => string,
): Type<T> {
  return {
    changes: false,
    part,
    fits,
    check(value) {
      if (!is(value)) throw mismatch(expected, value);
      return value as T;
    },
  };
}

const ESCAPED = /[\u0000-\u001f\/%\u007f]/;
const ALL_ESCAPED = /[\u0000-\u001f\/%\u007f]/g;
function escape(character: string): string {
  // Upper case, so that each text has one form only.
  return `%${character.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`;
}

/** Any text. */
export const text: Type<string> = {
  changes: false,
  fits: (variable) => `typeof ${variable} === "string" && ${variable}.isWellFormed()`,
  check(value) {
    if (typeof value !== "string") throw mismatch("a text", value);
    if (!value.isWellFormed()) throw new Mismatch("half of a pair of surrogates is no text");
    return value;
  },
  initial: () => "",
  part: {
    write: (value) => (ESCAPED.test(value) ? value.replace(ALL_ESCAPED, escape) : value),
    read(part) {
      if (!part.includes("%")) return part;
      if (/%(?![0-7][0-9A-Fa-f])/.test(part)) {
        throw new Mismatch("expected two hexadecimal digits after each % in the key");
      }
      return part.replace(/%(..)/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 16)));
    },
  },
};

/** `true` or `false`. */
export const bool: Type<boolean> = {
  ...plain<boolean>("true or false", (value) => typeof value === "boolean", {
    write: (value) => (value ? "1" : "0"),
    read(part) {
      if (part !== "0" && part !== "1") throw new Mismatch("expected 0 or 1 in the key");
      return part === "1";
    },
  }),
  initial: () => false,
};

/** Any finite number. */
export const number: Type<number> = {
  changes: false,
  initial: () => 0,
  check(value) {
    const given = numberOf(value);
    if (!Number.isFinite(given)) throw mismatch("a finite number", value);
    // Minus zero becomes zero, as it does in JSON: a value must not depend on when it was stored.
    return (given as number) + 0;
  },
};

/** `null`, the value of a table whose keys are all that matters. */
export const nothing: Type<null> = plain("null", (value) => value === null);

function integer(name: string, low: bigint, high: bigint, digits: number): Type<number> {
  // Numbers beyond 2^53 are not exact, so they are refused and never stored as something else.
  const [least, most] = [
    Math.max(Number(low), Number.MIN_SAFE_INTEGER),
    Math.min(Number(high), Number.MAX_SAFE_INTEGER),
  ];
  const expected = `an integer from ${least} to ${most}`;
  const is = (value: unknown) =>
    Number.isInteger(value) && (value as number) >= least && (value as number) <= most;
  const fits = (variable: string) =>
    `Number.isInteger(${variable}) && ${variable} >= ${least} && ${variable} <= ${most}`;
  const form = new RegExp(low < 0n ? `^[pn]\\d{${digits}}$` : `^\\d{${digits}}$`);
  const pad = (value: number | bigint) => String(value).padStart(digits, "0");
  return {
    // Minus zero is zero, in a key and in JSON.
    ...plain<number>(expected, is, {
      write(value) {
        if (low === 0n) return pad(value);
        // Below zero the distance from the smallest: it rises with the number, as texts must.
        return value < 0 ? `n${pad(BigInt(value) - low)}` : `p${pad(value)}`;
      },
      read(part) {
        if (!form.test(part)) throw new Mismatch(`expected a ${name} in the key, found ${part}`);
        const distance = BigInt(low === 0n ? part : part.slice(1));
        const value = Number(part[0] === "n" ? low + distance : distance);
        if (!is(value)) throw new Mismatch(`${part} in the key is not ${expected}`);
        return value;
      },
    }, fits),
    initial: () => 0,
  };
}

export const u8 = integer("u8", 0n, 2n ** 8n - 1n, 3);
export const u16 = integer("u16", 0n, 2n ** 16n - 1n, 5);
export const u32 = integer("u32", 0n, 2n ** 32n - 1n, 10);
/** An integer from 0 to 2^53 - 1, in keys with 20 digits as in other languages. */
export const u64 = integer("u64", 0n, 2n ** 64n - 1n, 20);
export const i8 = integer("i8", -(2n ** 7n), 2n ** 7n - 1n, 3);
export const i16 = integer("i16", -(2n ** 15n), 2n ** 15n - 1n, 5);
export const i32 = integer("i32", -(2n ** 31n), 2n ** 31n - 1n, 10);
/** An integer from -(2^53 - 1) to 2^53 - 1, in keys with 19 digits as in other languages. */
export const i64 = integer("i64", -(2n ** 63n), 2n ** 63n - 1n, 19);

/** A day in UTC such as `2026-11-23`, 1970 to 9999. */
export const date: Type<string> = {
  changes: false,
  check(value) {
    if (typeof value !== "string" || daysOf(value) === undefined) {
      throw new Mismatch(`expected a date such as 2026-11-23, found ${typeof value === "string" ? value : shown(value)}`);
    }
    return value;
  },
  part: { write: (value) => value, read: (part) => date.check(part) },
};

/** Times in the form that they are stored in: the same ones are checked again and again, and QuickJS
 * takes longest for the arithmetic of large integers. */
const storedTimes = new Set<string>();
const STORED_TIMES_MAX = 1_000;

/** An instant in RFC 3339, 1970 to 2554. Checking writes it in UTC with nine decimals. */
export const timestamp: Type<string> = {
  changes: false,
  check(value) {
    if (storedTimes.has(value as string)) return value as string;
    const nanoseconds = typeof value === "string" ? nanosecondsOf(value) : undefined;
    if (nanoseconds === undefined) throw mismatch("a time such as 2026-11-23T14:05:06Z", value);
    const stored = timeOf(nanoseconds);
    if (storedTimes.size >= STORED_TIMES_MAX) storedTimes.clear();
    storedTimes.add(stored);
    return stored;
  },
  part: {
    write: (value) => value,
    read(part) {
      if (timestamp.check(part) !== part) throw new Mismatch("expected a time with nine decimals in the key");
      return part;
    },
  },
};

/** JSON as it is. Of an object with `toJSON`, such as a `Date`, it is what that returns. Fields that are
 * `undefined` are left out. */
export const json: Type<unknown> = {
  changes: true,
  check(given) {
    const value = numberOf(given);
    if (value !== null && typeof value === "object") {
      if (Array.isArray(value)) return value.map((item) => json.check(item));
      const { toJSON } = value as { toJSON?: unknown };
      if (typeof toJSON === "function") return json.check(toJSON.call(value, ""));
      if (!isPlain(value)) throw mismatch("JSON", value);
      const fields = Object.entries(value).filter(([, item]) => item !== undefined);
      return Object.fromEntries(fields.map(([key, item]) => [text.check(key), json.check(item)]));
    }
    if (typeof value === "string") return text.check(value);
    if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
      // The engine has rounded it already.
      throw new Mismatch(`an integer beyond 2^53 - 1, about ${value}, is not exact: take it as a text, or as a \`number\``);
    }
    if (value === null || typeof value === "boolean") return value;
    // Minus zero becomes zero, as with `number`.
    if (Number.isFinite(value)) return (value as number) + 0;
    throw mismatch("JSON", value);
  },
};

/** One of some texts. */
export function oneOf<const T extends string>(...values: T[]): Type<T> {
  return plain(`one of ${values.join(", ")}`, (value) => values.includes(value as T), text.part as Part<T>);
}

/** A value, or null if it is absent. */
export function optional<T>(inner: Type<T>): Type<T | null> {
  return {
    changes: inner.changes,
    initial: () => null,
    absent: () => null,
    check: (value) => (value === null || value === undefined ? null : inner.check(value)),
  };
}

/** A value that may be left out of a record: it is `undefined` then, and is not written. */
export function maybe<T>(inner: Type<T>): Type<T | undefined> {
  return {
    changes: inner.changes,
    initial: () => undefined,
    absent: () => undefined,
    check: (value) => (value === undefined ? undefined : inner.check(value)),
  };
}

/** The same type, whose value may be left out of a record, and then is this one. */
export function withDefault<T>(inner: Type<T>, value: T): Type<T> {
  const copy = () => inner.check(value);
  return { ...inner, initial: copy, absent: copy };
}

function at<T>(place: string, check: () => T): T {
  try {
    return check();
  } catch (error) {
    throw error instanceof Mismatch ? error.within(place) : error;
  }
}

/** A list of values of one type. */
export function list<T>(item: Type<T>): Type<T[]> {
  return {
    changes: true,
    initial: () => [],
    check(value) {
      if (!Array.isArray(value)) throw mismatch("a list", value);
      return value.map((one, place) => at(`[${place}]`, () => item.check(one)));
    },
  };
}

/** A list of a fixed length, with a type for each place. */
export function tuple<const T extends readonly Type<any>[]>(...items: T): Type<{ [I in keyof T]: TypeOf<T[I]> }> {
  return {
    changes: true,
    check(value) {
      if (!Array.isArray(value) || value.length !== items.length) {
        throw mismatch(`a list of ${items.length}`, value);
      }
      return items.map((item, place) => at(`[${place}]`, () => item.check(value[place]))) as any;
    },
  };
}

/** An object whose fields all have one type, by names that only the data knows. */
export function map<T>(item: Type<T>): Type<Record<string, T>> {
  return {
    changes: true,
    initial: () => ({}),
    check(value) {
      if (value === null || typeof value !== "object" || Array.isArray(value) || !isPlain(value)) {
        throw mismatch("an object", value);
      }
      const entries = Object.entries(value);
      return Object.fromEntries(entries.map(([key, one]) => [text.check(key), at(key, () => item.check(one))]));
    },
  };
}

/** The fields of a record, with the TypeScript types of their values. */
type Fields<F extends Record<string, Type<any>>> = { [K in keyof F]: TypeOf<F[K]> };

/** An object with these fields, in this order. */
export function record<F extends Record<string, Type<any>>>(fields: F): Type<Fields<F>> {
  const names = Object.keys(fields);
  const types = names.map((name) => fields[name]!);
  const complete = types.every((type) => type.initial !== undefined);
  return {
    changes: true,
    initial: complete
      ? () => Object.fromEntries(names.map((name, place) => [name, types[place]!.initial!()])) as Fields<F>
      : undefined,
    check: recordCheck(names, types) as Type<Fields<F>>["check"],
  };
}

/** One of several records, which a text in the field `tag` tells apart. */
export function tagged<T extends Record<string, Type<any>>>(tag: string, records: T): Type<TypeOf<T[keyof T]>> {
  const known = new Map<unknown, Type<any>>(Object.entries(records));
  const expected = `one of ${[...known.keys()].join(", ")}`;
  return {
    changes: true,
    check(value) {
      if (value === null || typeof value !== "object" || Array.isArray(value)) throw mismatch("an object", value);
      const kind = (value as Record<string, unknown>)[tag];
      const record = known.get(kind);
      if (record === undefined) {
        const found = typeof kind === "string" ? kind : shown(kind);
        throw new Mismatch(`expected ${expected}, found ${found}`).within(tag);
      }
      return record.check(value);
    },
  };
}

/** The check of a record, compiled: it runs for each event, and engines without a compiler of their
 * own take several times as long for a loop over the fields. */
function recordCheck(names: string[], types: Type<any>[]): (value: unknown) => unknown {
  const field = (place: number, given: unknown) => {
    const type = types[place]!;
    if (given === undefined) {
      if (type.absent === undefined) throw new Mismatch(`missing field \`${names[place]}\``);
      return type.absent();
    }
    try {
      return type.check(given);
    } catch (error) {
      throw error instanceof Mismatch ? error.within(names[place]!) : error;
    }
  };
  // A quoted name is a name, whatever it has in it; `__proto__` alone would not be a field.
  const quoted = names.map((name) => (name === "__proto__" ? `["__proto__"]` : JSON.stringify(name)));
  const reads = names.map((name, place) => {
    const read = `value[${JSON.stringify(name)}]`;
    // Every object has a `constructor` and a few more, which are no fields.
    const own = name in Object.prototype ? `Object.hasOwn(value, ${JSON.stringify(name)}) ? ${read} : undefined` : read;
    return `const v${place} = ${own};`;
  });
  const values = types.map((type, place) => {
    const otherwise = `field(${place}, v${place})`;
    return type.fits === undefined ? otherwise : `${type.fits(`v${place}`)} ? v${place} : ${otherwise}`;
  });
  const body = `return function check(value) {
    if (value === null || typeof value !== "object" || Array.isArray(value)) throw mismatch("an object", value);
    ${reads.join("\n    ")}
    return { ${quoted.map((name, place) => `${name}: ${values[place]}`).join(", ")} };
  }`;
  return new Function("field", "mismatch", body)(field, mismatch);
}
