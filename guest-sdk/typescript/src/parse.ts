/** Parses JSON by the letter.
 *
 * `JSON.parse` forgets two things: how a number was written, so that `9007199254740990.7` is an
 * integer and `1e-400` is zero, and that an object had two members of one name. What it would hide is
 * a symbol here, which no type takes by mistake. */

import { Mismatch } from "./errors";

/** Stands for the value of a member that occurs twice. */
export const TWICE = Symbol("a member that occurs twice");

/** Parses JSON. A number that is an integer, but is not written as one, is a symbol with that text.
 * Throws `Mismatch`. */
export function parse(data: string | Uint8Array): unknown {
  if (typeof data !== "string") throw new Mismatch("the data is not UTF-8");
  let value: unknown;
  try {
    value = JSON.parse(data);
  } catch (error) {
    throw new Mismatch((error as Error).message);
  }
  return hidesNothing(data, value) ? value : readByLetter(data);
}

/** The number that `parse` returned as a symbol; other values as they are. */
export function numberOf(value: unknown): unknown {
  return typeof value === "symbol" && value !== TWICE ? Number(value.description) : value;
}

const SPACES = /[ \n\r\t]+/g;

/** Whether a value, written again, has the text that it was read from, but for spaces: it has the same
 * members then, and each number is as it was written. The engine does this faster than any code here
 * could look at the text. */
function hidesNothing(data: string, value: unknown): boolean {
  let written: string;
  try {
    written = JSON.stringify(value);
  } catch {
    // Too deep for its recursion.
    return false;
  }
  // Taking the spaces out of texts as well makes no member and no number of them.
  return written === data || (written.length < data.length && written.replace(SPACES, "") === data.replace(SPACES, ""));
}

/** A list or an object whose end has not been read. */
interface Open {
  into: unknown[] | Record<string, unknown>;
  /** The name of the member whose value comes next, once it has been read. */
  name: string | undefined;
}

/** Anything but texts, lists and objects: it ends where something else begins. */
const WORD = /[^,:\]}\s]+/y;
const WORDS: Record<string, unknown> = { true: true, false: false, null: null };

/** Reads what `JSON.parse` has accepted. It does not call itself, so depth costs no stack. */
function readByLetter(data: string): unknown {
  const whole: unknown[] = [];
  const outer: Open[] = [];
  let open: Open = { into: whole, name: undefined };
  for (let at = 0; at < data.length; ) {
    switch (data[at]) {
      case "{":
      case "[": {
        const into = data[at] === "{" ? {} : [];
        put(open, into);
        outer.push(open);
        open = { into, name: undefined };
        at += 1;
        break;
      }
      case "}":
      case "]":
        open = outer.pop()!;
        at += 1;
        break;
      case '"': {
        const end = endOfText(data, at);
        const text = textOf(data.slice(at, end));
        if (Array.isArray(open.into) || open.name !== undefined) put(open, text);
        else open.name = text;
        at = end;
        break;
      }
      case ",":
      case ":":
      case " ":
      case "\n":
      case "\r":
      case "\t":
        at += 1;
        break;
      default: {
        WORD.lastIndex = at;
        const [word] = WORD.exec(data)!;
        put(open, word in WORDS ? WORDS[word] : written(word));
        at += word.length;
      }
    }
  }
  return whole[0];
}

function put(open: Open, value: unknown): void {
  const { into, name } = open;
  if (Array.isArray(into)) {
    into.push(value);
    return;
  }
  const member = Object.hasOwn(into, name!) ? TWICE : value;
  // Assigning would set the prototype.
  if (name === "__proto__") {
    Object.defineProperty(into, name, { value: member, configurable: true, enumerable: true, writable: true });
  } else {
    into[name!] = member;
  }
  open.name = undefined;
}

/** A number, or a symbol if it is an integer that is not written as one. */
function written(word: string): number | symbol {
  const value = Number(word);
  return Number.isInteger(value) && /[.eE]/.test(word) ? Symbol(word) : value;
}

/** Where a text ends that begins with the quote at `start`. */
function endOfText(data: string, start: number): number {
  for (let end = start; ; ) {
    end = data.indexOf('"', end + 1);
    let backslashes = 0;
    while (data[end - 1 - backslashes] === "\\") backslashes += 1;
    if (backslashes % 2 === 0) return end + 1;
  }
}

function textOf(quoted: string): string {
  return quoted.includes("\\") ? (JSON.parse(quoted) as string) : quoted.slice(1, -1);
}
