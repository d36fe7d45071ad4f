/** Version 2 of the starter: it stores the visits in another shape, and migrates those of version 1,
 * whatever its language. */

import {
  type Event,
  type Manifest,
  type NewEntries,
  type OldEntry,
  Projection,
  Reject,
  UnknownVersion,
  record,
  text,
  u64,
} from "@foldstream/sdk";

export default class Visits extends Projection {
  static override manifest: Manifest = { name: "starter", subjects: ["visits.*"], stateVersion: 2 };
  visits = this.table("visits", text, record({ page: text, count: u64 }));

  apply(event: Event): void {
    const page = event.token(2);
    const visits = this.visits.edit(page);
    visits.page = page;
    visits.count += 1;
  }

  override migrate(fromVersion: number, old: OldEntry, entries: NewEntries): void {
    if (fromVersion !== 1) throw new UnknownVersion(fromVersion);
    const visits = old.ofTable("page", text, u64);
    if (visits === undefined) return;
    const [page, count] = visits;
    if (page === "odd") throw new Reject("nobody knows what to do with this page");
    if (page === "late") void this.later();
    entries.set(this.visits, page, { page, count });
  }

  /** What follows its `await` never runs. */
  private async later(): Promise<void> {
    await null;
  }
}
