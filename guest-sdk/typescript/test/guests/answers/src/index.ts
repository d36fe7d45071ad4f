/** The guest `answers` of `tests/guests` in TypeScript: it must publish, set and store the same. */

import {
  type Effects,
  type Event,
  type Fired,
  Handler,
  type HandlerManifest,
  NotFound,
  Reject,
  Retry,
  days,
  hours,
  query,
  text,
  u64,
} from "@foldstream/sdk";

export default class Answers extends Handler {
  static override manifest: HandlerManifest = {
    name: "answers",
    description: "Answers each event as its subject asks",
    subjects: ["in.*.*"],
    publishes: ["out.>"],
    replies: true,
    timers: true,
    key: { subjectToken: 2 },
    attempts: 2,
    backoffMs: [10, 20],
    inbox: { windowMs: hours(1) / 1_000, idsMax: 1_000 },
  };

  /** How many events of a key it has handled, and timers. */
  handled = this.table("handled", text, u64);

  handle(event: Event, effects: Effects): void {
    const key = event.token(2);
    this.count(key);
    const of = event.sequence;
    const answer = (number: number, said: string, more = {}) =>
      effects.publish(
        `out.${key}.${of}`,
        { of, number, text: said },
        { type: "answer", headers: { "x-number": String(number) }, ...more },
      );
    switch (event.token(3)) {
      case "three":
        for (let number = 0; number < 3; number++) answer(number, '\u0000ë🦀"\\/');
        break;
      case "plain":
        effects.publish(`out.${key}.plain`);
        break;
      case "text":
        effects.publish(`out.${key}.text`, "no JSON");
        break;
      case "bytes":
        effects.publish(`out.${key}.bytes`, new Uint8Array([0, 255, 128]));
        break;
      case "keyed":
        answer(0, "", { key: "another/ë" });
        break;
      case "later":
        answer(0, "later", { notBeforeUs: event.timeUs + days(1) });
        break;
      case "past":
        answer(0, "past", { notBeforeUs: 1 });
        break;
      case "brief":
        answer(0, "brief", { timeToLiveS: 3_600 });
        break;
      case "first":
        effects.publish(`out.${key}.first`, undefined, { expectedLast: 0 });
        break;
      case "alone":
        effects.publish(`out.${key}.alone`, undefined, { expectedLast: { subject: `out.${key}.>`, sequence: 0 } });
        break;
      case "elsewhere":
        effects.publish("elsewhere");
        break;
      case "timer":
        effects.setTimer(`now/${key}`, 0);
        effects.setTimer(`later/${key}`, event.timeUs + days(1));
        break;
      case "keyed-timer":
        effects.setTimer(`keyed/${key}`, event.timeUs, { key: "another/ë" });
        break;
      case "replace":
        effects.setTimer(`replaced/${key}`, event.timeUs + days(1));
        effects.cancelTimer(`replaced/${key}`);
        effects.setTimer(`replaced/${key}`, event.timeUs + days(1), { key: "last" });
        break;
      case "cancel":
        effects.cancelTimer(`later/${key}`);
        break;
      case "reply":
        effects.reply(event, of);
        break;
      case "fail":
        answer(0, "lost");
        effects.cancelTimer(`later/${key}`);
        throw new Reject("it was asked to fail");
      case "half":
        // Half of a character, as `slice` leaves it, is in the log and in the failure.
        console.log("half", "a🦀".slice(0, 2));
        throw new Reject(`a half: ${"a🦀".slice(0, 2)}`);
      case "retry":
        throw new Retry("not yet");
    }
  }

  override onTimer(timer: Fired, effects: Effects): void {
    this.count("timers");
    const { name, key = null, atUs, timeUs } = timer;
    const part = timer.part(2);
    effects.publish(`out.${part}.rang`, { name, part, key, is_due: timeUs >= atUs });
  }

  override queries = {
    handled: query("How many events of a key it has handled", text, (key) => {
      const count = this.handled.get(key);
      if (count === undefined) throw new NotFound();
      return count;
    }),
  };

  private count(key: string): void {
    this.handled.set(key, (this.handled.get(key) ?? 0) + 1);
  }
}
