/** Migrations: what an old entry gives, and what a new one is stored as. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Event,
  type Manifest,
  type NewEntries,
  type OldEntry,
  Projection,
  UnknownVersion,
  json,
  text,
  tuple,
  u32,
  u64,
} from "../src/index";
import { Harness, event } from "../src/testing";

const Added = tuple(text, u32, u64);

/** Version 1: all in one table, amounts as text. */
class First extends Projection {
  static override manifest: Manifest = { name: "amounts", subjects: ["add.*"] };
  rows = this.table("row", [text, u32], text);
  total = this.value("total", u64);

  apply(event: Event): void {
    const [name, day, amount] = event.json(Added);
    this.total.set((this.total.get() ?? 0) + amount);
    this.rows.set([name, day], String(Number(this.rows.get([name, day]) ?? "0") + amount));
  }
}

/** Version 2: by day and name, amounts as numbers; the total has another name. */
class Second extends Projection {
  static override manifest: Manifest = { name: "amounts", subjects: ["add.*"], stateVersion: 2 };
  days = this.table("day", [u32, text], u64);
  sum = this.value("sum", u64);

  apply(event: Event): void {
    const [name, day, amount] = event.json(Added);
    this.sum.set((this.sum.get() ?? 0) + amount);
    this.days.set([day, name], (this.days.get([day, name]) ?? 0) + amount);
  }

  override migrate(fromVersion: number, old: OldEntry, entries: NewEntries): void {
    if (fromVersion !== 1) throw new UnknownVersion(fromVersion);
    const row = old.ofTable("row", [text, u32], text);
    if (row !== undefined) {
      const [[name, day], amount] = row;
      entries.set(this.days, [day, name], Number(amount));
    }
    const total = old.ofValue("total", u64);
    if (total !== undefined) entries.setValue(this.sum, total);
  }
}

test("migrating gives what folding gives, and continues from there", () => {
  // Names that are escaped in keys, and an entry that a later version has in another order.
  const events = ["b", "a/b", "a", "100 %", "b"].map((name) => event("add.x", [name, 7 - name.length, 5]));
  const [old, folded] = [new Harness(First).given(...events), new Harness(Second).given(...events)];
  const migrated = Harness.migrated(Second, 1, old.entries());
  assert.deepEqual(migrated.entries(), folded.entries());
  assert.equal(migrated.get("day/0000000006/b"), 10);

  migrated.given(event("add.x", ["b", 6, 1]));
  assert.deepEqual([migrated.get("day/0000000006/b"), migrated.get("sum")], [11, 26]);
  migrated.assertSameForAnyBatching();
});

test("refusals say why", () => {
  for (const [version, key, value, message] of [
    [7, "total", 1, "state version 7 is unknown to this version of the module"],
    [1, "row/a/1", "5", "the key row/a/1 does not match its old type: expected a u32 in the key, found 1"],
    [1, "row/a", "5", "the key row/a does not match its old type: expected 2 parts after the name of the table"],
    [1, "row/a/0000000001", 5, "the value of row/a/0000000001 does not match its old type: expected a text, found 5"],
    [1, "total", -1, "the value of total does not match its old type: expected an integer from 0 to 9007199254740991, found -1"],
    [1, "row/a/0000000001", "five", "a value for table day: expected an integer from 0 to 9007199254740991, found NaN"],
  ] as const) {
    assert.throws(() => Harness.migrated(Second, version, { [key]: value }), { message });
  }
});

/** Does with an entry what its value says. */
class Anything extends Projection {
  static override manifest: Manifest = { name: "anything", subjects: [">"] };
  where = this.table("where", text, json);
  long = this.table("long", text, json);
  same = this.value("same", text);

  apply(): void {}

  override migrate(_: number, old: OldEntry, entries: NewEntries): void {
    switch (old.json(text)) {
      case "keep":
        return entries.keep(old);
      case "where":
        return entries.set(this.where, old.key, ["t", "t-x"].map((name) => old.isIn(name)));
      case "same":
        return entries.setValue(this.same, old.key);
      case "long":
        return entries.set(this.long, "x".repeat(1_020), null);
    }
  }
}

test("entries are kept as they are, or left out", () => {
  const migrated = Harness.migrated(Anything, 1, { "a/1": "keep", "a/2": "drop", b: "keep" });
  assert.deepEqual(migrated.entries(), { "a/1": "keep", b: "keep" });
});

test("a table has what follows its name and a slash", () => {
  const migrated = Harness.migrated(Anything, 1, { t: "where", "t-x/1": "where", "t/1": "where", "tt/1": "where" });
  assert.deepEqual(migrated.entries(), {
    "where/t": [true, false],
    "where/t%2F1": [true, false],
    "where/t-x%2F1": [false, true],
    "where/tt%2F1": [false, false],
  });
});

test("later entries of one key win, in the order of the old keys", () => {
  assert.deepEqual(Harness.migrated(Anything, 1, { b: "same", a: "same" }).entries(), { same: "b" });
});

test("what no table could store is refused", () => {
  assert.throws(() => Harness.migrated(Anything, 1, { a: "long" }), /a key has 1025 bytes; at most 1024 are allowed/);
});

test("a migration that would finish later is refused", () => {
  class Later extends Anything {
    override async migrate(_: number, old: OldEntry, entries: NewEntries): Promise<void> {
      entries.keep(old);
    }
  }
  assert.throws(() => Harness.migrated(Later, 1, { a: "keep" }), /migrate must not be async/);
});
