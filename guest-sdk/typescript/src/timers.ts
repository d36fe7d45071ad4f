/** Timers: what a handler asks to be called for at a time. */

import { timeOf } from "./time";

/** A timer to set. */
export interface Timer {
  name: string;
  /** When it fires, in microseconds since the Unix epoch. */
  atUs: number;
  /** None takes the key of the event that sets it. */
  key?: string | undefined;
}

/** A timer that fires. It is pending no more. */
export class Fired {
  constructor(
    /** Its name. */
    readonly name: string,
    /** The time that it was set to, in microseconds since the Unix epoch. */
    readonly atUs: number,
    /** When it fired, by the clock of the stream, in microseconds since the Unix epoch: not before
     * `atUs`, and later if the host was stopped or the stream away. */
    readonly timeUs: number,
    /** The sequence of its firing in the stream, where it has a place like an event. */
    readonly sequence: number,
    /** Its key. */
    readonly key?: string,
  ) {}

  /** When it fired, as text: `2026-11-23T14:05:06.123456000Z`. */
  get time(): string {
    return timeOf(BigInt(this.timeUs) * 1_000n);
  }

  /** A part of its name between slashes, counted from 1: the second of `payment/42` is `42`. Empty
   * if the name has fewer. */
  part(number: number): string {
    return this.name.split("/")[number - 1] ?? "";
  }
}
