/** Counts visits per page: the smallest useful projection, to begin from. */

import { type Event, type Manifest, NotFound, Projection, query, text, u64 } from "@foldstream/sdk";

export default class Starter extends Projection {
  static override manifest: Manifest = {
    name: "starter",
    description: "Counts visits per page",
    subjects: ["visits.*"],
  };

  // Everything it keeps, in tables. Entries of this one have keys such as `page/home`.
  pages = this.table("page", text, u64);

  /** Applies one event. The page is the second token of the subject, as in `visits.home`. */
  apply(event: Event): void {
    const page = event.token(2);
    this.pages.set(page, (this.pages.get(page) ?? 0) + 1);
  }

  override queries = {
    visits: query('How often a page was visited, by its name: "home"', text, (page) => {
      const count = this.pages.get(page);
      if (count === undefined) throw new NotFound();
      return count;
    }),
  };
}
