/** Stores all that differs from run to run elsewhere, and how the system is out of reach. */

import { type Event, type Manifest, Projection, json, u64 } from "@foldstream/sdk";

export default class Chance extends Projection {
  static override manifest: Manifest = { name: "chance", subjects: ["chance.*"] };
  seen = this.table("seen", u64, json);

  apply(event: Event): void {
    if (event.kind === "fail") return this.fail(String(event.data));
    const begin = performance.now();
    this.seen.set(event.sequence, {
      clocks: [Date.now(), new Date().toISOString(), new Date(2026, 0, 1).getTime()],
      measured: performance.now() >= begin,
      draws: [Math.random(), Math.random()],
      set: [...new Set(["one", "two", "three"])],
      object: Object.keys({ one: 1, two: 2, three: 3 }),
      system: ["process", "require", "fetch", "setTimeout", "Worker", "crypto"].filter((name) => name in globalThis),
    });
    console.log("printed", event.sequence);
  }

  private async later(): Promise<void> {
    await null;
    this.seen.set(0, "never");
  }

  private async failing(): Promise<void> {
    throw new RangeError("it is lost");
  }

  private async succeeding(): Promise<void> {}

  private fail(how: string): void {
    switch (how) {
      case "wait":
        void this.later();
        return;
      case "queue":
        queueMicrotask(() => this.seen.set(0, "never"));
        return;
      case "fail later":
        void this.failing();
        return;
      case "return":
        return this.succeeding() as any;
      case "assert":
        throw new RangeError("it does not hold");
      case "recurse":
        return this.fail(how);
      case "allocate": {
        const kept: number[][] = [];
        for (;;) kept.push(new Array(1 << 20).fill(1));
      }
    }
  }
}
