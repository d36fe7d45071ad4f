/** The next version of the guest `answers`: it stores something else, and migrates the state of
 * version 1, whatever its language. */

import {
  type Effects,
  type Event,
  type Fired,
  Handler,
  type HandlerManifest,
  type NewEntries,
  type OldEntry,
  UnknownVersion,
  record,
  text,
  u64,
} from "@foldstream/sdk";

export default class Next extends Handler {
  static override manifest: HandlerManifest = {
    name: "answers",
    subjects: ["in.*.*"],
    publishes: ["out.>"],
    replies: true,
    timers: true,
    key: { subjectToken: 2 },
    stateVersion: 2,
  };
  seen = this.table("seen", text, record({ events: u64 }));

  handle(event: Event, effects: Effects): void {
    const key = event.token(2);
    this.seen.edit(key).events += 1;
    effects.publish(`out.${key}.next`);
    effects.cancelTimer(`later/${key}`);
  }

  override onTimer(timer: Fired, effects: Effects): void {
    this.seen.edit("timers").events += 1;
    effects.publish(`out.${timer.part(2)}.rang`);
  }

  override migrate(fromVersion: number, old: OldEntry, entries: NewEntries): void {
    if (fromVersion !== 1) throw new UnknownVersion(fromVersion);
    const handled = old.ofTable("handled", text, u64);
    if (handled !== undefined) entries.set(this.seen, handled[0], { events: handled[1] });
    else entries.keep(old);
  }
}
