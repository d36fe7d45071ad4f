/** What a handler publishes, and the timers that it sets. */

import { Mismatch } from "./errors";
import type { Event } from "./events";
import type { Timer } from "./timers";
import { json, map, optional, record, text, u64, type Type } from "./types";

/** What a message may have besides its subject and data. */
export interface MessageOptions {
  /** Its type; by default the last token of the subject. */
  type?: string | undefined;
  /** Further headers, by name. The host refuses those that it sets itself, and those that steer the
   * server. */
  headers?: Record<string, string> | undefined;
  /** Messages with one key are stored in order; by default the key of the event or timer. */
  key?: string | undefined;
  /** It is not sent before this time, in microseconds since the Unix epoch. Until then it waits in
   * the outbox, through restarts and new code, and holds back no other message of its key. A timer
   * decides when its time has come; this decides now. */
  notBeforeUs?: number | undefined;
  /** For how long the stream keeps it, in seconds, at least 1. The stream must allow that; an
   * embedded log can't, and the host refuses the message. */
  timeToLiveS?: number | undefined;
  /** It is stored only if the last message of its subject, or of a pattern that covers it, has this
   * sequence in the stream that it goes to; 0 if there must not be any.
   *
   * The state is committed by then, and is not undone: a message whose condition does not hold is
   * set aside as a conflict, for an operator to send or drop, and later messages continue. */
  expectedLast?: number | { subject: string; sequence: number } | undefined;
}

/** What one event, or one timer, causes: messages in order, and changes to timers.
 *
 * The host stores them together with what the handler writes into its tables, and sends the messages
 * after that. If the handler throws, nothing is sent, set or cancelled. */
export interface Effects {
  /** Publishes a message. Its data is written as JSON; a text or bytes is the data as it is. */
  publish(subject: string, data?: unknown, options?: MessageOptions): void;

  /** Sets a timer, in microseconds since the Unix epoch: `event.timeUs + minutes(30)`. A time in the
   * past fires at once. A timer that is pending under the same name is replaced. Its key is that of
   * messages that it causes; by default that of the event.
   *
   * The manifest must say `timers: true`. */
  setTimer(name: string, atUs: number, options?: { key?: string }): void;

  /** Cancels a timer: it does not fire, whatever its time. Does nothing if none is pending under
   * that name. */
  cancelTimer(name: string): void;

  /** Replies to the publisher of the event, if it named its inbox in its header
   * `foldstream-reply-to`. Otherwise, and if the operator has granted no replies, it does nothing.
   * The manifest must say `replies: true`.
   *
   * A reply leaves after the commit of what the event changed, over plain NATS. Nobody confirms it:
   * it may be lost, and come twice after a crash. */
  reply(event: Event, data: unknown): void;
}

/** A message, checked. */
export interface Message {
  subject: string;
  type?: string | undefined;
  headers: [string, string][];
  data: string | Uint8Array;
  key?: string | undefined;
  notBeforeUs?: number | undefined;
  timeToLiveS?: number | undefined;
  /** Without a subject it is that of the message. */
  expectedLast?: { subject?: string; sequence: number } | undefined;
}

/** What is done to a timer. */
export type TimerChange = { set: Timer } | { cancel: string };

/** Where effects go: to a host, or to memory in tests. `cause` is the index of the event or timer in
 * its batch. */
export interface Outbox {
  publish(cause: number, messages: readonly Message[]): void;
  changeTimers(cause: number, changes: readonly TimerChange[]): void;
}

/** The header of an event that names the inbox of its requester. */
const REPLY_TO = "foldstream-reply-to";
/** What a subject of an inbox must be for the host to send a reply: a stranger wrote it. */
const INBOX = /^_INBOX(\.[!-)+,\-/-=?-~]+)+$/;
const INBOX_BYTES_MAX = 256;

const Headers = map(text);
const LastOf = record({ subject: text, sequence: u64 });
/** The component passes 31 bits: 68 years. */
const TIME_TO_LIVE_MAX = 2 ** 31 - 1;

/** The effects of one event, until it has succeeded. */
export class Collected implements Effects {
  readonly #messages: Message[] = [];
  readonly #changes: TimerChange[] = [];
  #closed = false;

  publish(subject: string, data?: unknown, options: MessageOptions = {}): void {
    this.#refuseLate();
    const place = `a message to ${subject}`;
    this.#messages.push({
      subject: checked("the subject of a message", text, subject),
      type: checked(`${place}: type`, optional(text), options.type) ?? undefined,
      headers: Object.entries(checked(`${place}: headers`, Headers, options.headers ?? {})),
      data: checked(`${place}: data`, written, data),
      key: checked(`${place}: key`, optional(text), options.key) ?? undefined,
      notBeforeUs: checked(`${place}: notBeforeUs`, optional(u64), options.notBeforeUs) ?? undefined,
      timeToLiveS: checked(`${place}: timeToLiveS`, optional(lifetime), options.timeToLiveS) ?? undefined,
      expectedLast: checked(`${place}: expectedLast`, optional(last), options.expectedLast) ?? undefined,
    });
  }

  setTimer(name: string, atUs: number, { key }: { key?: string } = {}): void {
    this.#refuseLate();
    const place = `timer ${name}`;
    const timer = {
      name: checked("the name of a timer", text, name),
      atUs: checked(`${place}: its time in microseconds`, u64, atUs),
      key: checked(`${place}: key`, optional(text), key) ?? undefined,
    };
    this.#changes.push({ set: timer });
  }

  cancelTimer(name: string): void {
    this.#refuseLate();
    this.#changes.push({ cancel: checked("the name of a timer", text, name) });
  }

  reply(event: Event, data: unknown): void {
    const inbox = event.headers.get(REPLY_TO);
    if (inbox === undefined || inbox.length > INBOX_BYTES_MAX || !INBOX.test(inbox)) return;
    this.publish(inbox, data, { type: "reply" });
  }

  /** The event is handled: what comes later comes from asynchronous code, which a test engine runs. */
  close(): void {
    this.#closed = true;
  }

  #refuseLate(): void {
    if (this.#closed) throw new TypeError("the event is handled: its effects can't change any more");
  }

  passOn(cause: number, outbox: Outbox): void {
    if (this.#messages.length > 0) outbox.publish(cause, this.#messages);
    if (this.#changes.length > 0) outbox.changeTimers(cause, this.#changes);
  }
}

/** A checked copy of what a handler asks for. A value of another type must not reach the host: the
 * engine would end the call without saying which value it was. */
function checked<T>(place: string, type: Pick<Type<T>, "check">, value: unknown): T {
  try {
    return type.check(value);
  } catch (error) {
    throw error instanceof Mismatch ? error.within(place) : error;
  }
}

/** Data as it is sent. Nothing is empty data. */
const written = {
  check(value: unknown): string | Uint8Array {
    if (value === undefined) return "";
    if (value instanceof Uint8Array) return value;
    return typeof value === "string" ? text.check(value) : JSON.stringify(json.check(value));
  },
};

const lifetime: Type<number> = {
  changes: false,
  check(value) {
    const seconds = u64.check(value);
    if (seconds < 1 || seconds > TIME_TO_LIVE_MAX) {
      throw new Mismatch(`expected 1 to ${TIME_TO_LIVE_MAX} seconds, found ${seconds}`);
    }
    return seconds;
  },
};

const last: Type<{ subject?: string; sequence: number }> = {
  changes: false,
  check: (value) => (typeof value === "number" ? { sequence: u64.check(value) } : LastOf.check(value)),
};
