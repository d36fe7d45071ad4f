/** Old versions of events are read as in every SDK: `guest-sdk/conformance/upcasts.json`. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Event, firstVersion, i64, list, Projection, record, Reject, Retry, text } from "../src/index";
import { event, Harness, type GivenEvent } from "../src/testing";

interface Vectors {
  events: GivenEvent[];
  entries: Record<string, string>;
  rejected: { event: GivenEvent; message: string }[];
}

const path = new URL("../../conformance/upcasts.json", import.meta.url);
const vectors = JSON.parse(readFileSync(path, "utf8")) as Vectors;

const PlacedV1 = record({ order: text, total_cents: i64 });
const PlacedV2 = record({ order: text, total_cents: i64, currency: text });
const Placed = record({ order: text, total: record({ cents: i64, currency: text }), lines: list(text) });

const placed = firstVersion("placed", PlacedV1)
  .next("placed.v2", PlacedV2, (old) => {
    if (old.total_cents < 0) throw new Reject("the total is below zero");
    return { ...old, currency: "EUR" };
  })
  .next("placed.v3", Placed, ({ order, total_cents, currency }) => {
    if (currency === "") throw new Reject("the currency is missing");
    return { order, total: { cents: total_cents, currency }, lines: [] };
  });

class Orders extends Projection {
  static override manifest = { name: "orders", subjects: ["orders.>"] };

  orders = this.table("order", text, Placed);

  apply(event: Event) {
    if (placed.has(event)) this.orders.set(event.token(2), placed.of(event));
  }
}

test("all versions of an event give the entries of every language", () => {
  const harness = new Harness(Orders).given(...vectors.events);
  const stored = Object.entries(harness.entries()).map(([key, value]) => [key, JSON.stringify(value)]);
  // The harness parses what is stored, and JSON.stringify writes it as the tables do.
  assert.deepEqual(Object.fromEntries(stored), vectors.entries);
  harness.assertSameForAnyBatching();
});

for (const { event: given, message } of vectors.rejected) {
  test(`${given.type} ${given.data} is rejected as in every language`, () => {
    const harness = new Harness(Orders);
    assert.throws(
      () => harness.given(given),
      (error) => error instanceof Reject && error.message.startsWith(message),
    );
    assert.deepEqual(harness.entries(), {});
  });
}

test("a conversion cannot ask for another attempt, and its mistakes keep their class", () => {
  const of = (convert: () => never) => {
    const versions = firstVersion("a", text).next("b", text, convert);
    return () => versions.of(new Event(3, 0, "x.a", "a", new Map(), '"1"'));
  };
  assert.throws(
    of(() => {
      throw new Retry("later");
    }),
    { name: "Reject", message: "event 3 (x.a) of type a does not become the current version: later" },
  );
  assert.throws(
    of(() => {
      throw new RangeError("a mistake");
    }),
    RangeError,
  );
});

test("an asynchronous conversion is refused", () => {
  const versions = firstVersion("a", text).next<any>("b", text, async () => "1");
  assert.throws(() => versions.of(new Event(1, 0, "x.a", "a", new Map(), '"1"')), /must not be async/);
});

test("two versions cannot have one type, and other events are rejected", () => {
  assert.throws(() => firstVersion("a", text).next("b", text, String).next("a", text, String), /two versions/);
  assert.deepEqual(placed.kinds, ["placed", "placed.v2", "placed.v3"]);
  assert.throws(() => placed.of(new Event(2, 0, "orders.1.paid", "paid", new Map(), "{}")), {
    name: "Reject",
    message: "event 2 (orders.1.paid) of type paid is no version of placed",
  });
  assert.equal(placed.has(new Event(2, 0, "x", "__proto__", new Map(), "{}")), false);
  assert.deepEqual(new Harness(Orders).given(event("orders.1.paid")).entries(), {});
});
