/** A module's description of itself. */

/** How the host finds the key of an event: the whole subject, one of its tokens counted from 1, a
 * header by lower-case name, or a value inside JSON data as a JSON pointer (RFC 6901). Events with
 * one key are applied in order, and can be rebuilt without the others. */
export type KeyRule = "subject" | { subjectToken: number } | { header: string } | { dataPointer: string };

/** Leaves out events that their producer published again within a window. */
export interface Inbox {
  /** How much later than the first one an event is recognised, in milliseconds. */
  windowMs: number;
  /** What identifies an event; by default the id of the message. */
  id?: { header: string } | { dataPointer: string } | undefined;
  /** How many ids the host keeps, by default a million; the oldest are forgotten first. */
  idsMax?: number | undefined;
}

/** What a module is and needs. Only name and subjects are required. */
export interface Manifest {
  /** Its name, and the default name of its deployment: 1 to 63 lower-case letters, digits and
   * hyphens, a letter first. */
  name: string;
  /** The subjects that it reads, with the wildcards `*` (one token) and `>` (the rest). */
  subjects: string[];
  /** For people: its purpose. */
  description?: string | undefined;
  /** How the host finds the key of an event. */
  key?: KeyRule | undefined;
  /** Whether events carry their headers, which cost about as much as the rest of an event. */
  headers?: boolean | undefined;
  /** Version of the stored entries, from 1. Raise it if the code changes the meaning of old keys or
   * values: the host then rebuilds the state. */
  stateVersion?: number | undefined;
  /** How to recognise events that a producer published twice. */
  inbox?: Inbox | undefined;
  /** How often the host tries a failing batch, including the first attempt. */
  attempts?: number | undefined;
  /** The pause before the second attempt, which doubles each time, and the longest pause. */
  backoffMs?: [initial: number, longest: number] | undefined;
  /** The linear memory that one instance needs, in bytes. */
  memoryLimit?: number | undefined;
  /** The longest time that one call may need, in milliseconds. */
  deadlineMs?: number | undefined;
  /** The most events that one batch may have. */
  batchLimit?: number | undefined;
  /** The largest total size of all keys and values, in bytes. */
  stateLimit?: number | undefined;
}

/** What a handler is and needs. */
export interface HandlerManifest extends Manifest {
  /** The subjects that it publishes to, with the wildcards `*` and `>`. This grants nothing: who
   * deploys it decides, with `--allow-publish`, which of them it may publish to. */
  publishes?: string[] | undefined;
  /** Whether it replies to the publishers of events with `effects.reply`. Events then carry their
   * headers. Who deploys it decides whether it may, with `--allow-publish '_INBOX.>@SOURCE'`. */
  replies?: boolean | undefined;
  /** Whether it sets timers, with `effects.setTimer`. The host records their firings in the stream
   * that the handler reads. */
  timers?: boolean | undefined;
}

/** The subjects that a handler may publish to, with those of replies. */
export function publishesOf({ publishes = [], replies }: HandlerManifest): string[] {
  return replies ? [...publishes, "_INBOX.>"] : publishes;
}

/** Whether events carry their headers. */
export function wantsHeaders({ headers, replies }: HandlerManifest): boolean {
  return headers === true || replies === true;
}
