/** Events. */

import { Mismatch, Reject } from "./errors";
import { parse } from "./parse";
import { dateOf, timeOf } from "./time";
import type { Type } from "./types";

const DAY = 86_400_000_000;

/** An immutable fact. */
export class Event {
  constructor(
    /** Its sequence in the stream, counted from 1. Strictly increasing, with gaps for events that
     * do not match the module's subjects. */
    readonly sequence: number,
    /** When the stream stored it, in microseconds since the Unix epoch. On JetStream the server sets
     * it, and no publisher can: put the time at which something happened into the data. */
    readonly timeUs: number,
    /** The subject under which it was published, such as `orders.42.placed`. */
    readonly subject: string,
    /** Its type: the CloudEvents `type`, otherwise the `Event-Type` header, otherwise the last token
     * of the subject. */
    readonly kind: string,
    /** Headers by lower-case name; empty unless the manifest asks for them. */
    readonly headers: ReadonlyMap<string, string>,
    /** What happened: text if it is valid UTF-8, otherwise bytes. */
    readonly data: string | Uint8Array,
  ) {}

  /** When the stream stored it, to the microsecond: `2026-11-23T14:05:06.123456000Z`. */
  get time(): string {
    return timeOf(BigInt(this.timeUs) * 1_000n);
  }

  /** The day in UTC on which the stream stored it: `2026-11-23`. */
  get date(): string {
    return dateOf(Math.floor(this.timeUs / DAY));
  }

  /** One token of the subject, counted from 1: the second of `orders.42.placed` is `42`. */
  token(number: number): string {
    const token = this.subject.split(".")[number - 1];
    if (token === undefined) throw new Reject(`subject ${this.subject} has no token ${number}`);
    return token;
  }

  /** Whether its subject is one of these: `orders.*.placed`, where `*` matches any token, or
   * `orders.>`, where `>` at the end matches one token or more. */
  isUnder(pattern: string): boolean {
    return subjectMatches(pattern, this.subject);
  }

  /** The data as JSON, checked against a type. Throws `Reject` if it does not match. */
  json<T>(type: Type<T>): T {
    try {
      return type.check(parse(this.data));
    } catch (error) {
      if (!(error instanceof Mismatch)) throw error;
      throw new Reject(`event ${this.sequence} (${this.subject}): ${error.message}`);
    }
  }
}

/** Whether a subject matches a pattern with the wildcards `*` and `>`. */
export function subjectMatches(pattern: string, subject: string): boolean {
  const tokens = subject.split(".");
  const wanted = pattern.split(".");
  for (const [place, want] of wanted.entries()) {
    if (place >= tokens.length) return false;
    if (want === ">") return true;
    if (want !== "*" && want !== tokens[place]) return false;
  }
  return tokens.length === wanted.length;
}
