/** Scenarios: events in, entries and answers out, without Wasm. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Reject } from "@foldstream/sdk";
import { Harness, event, eventsFromNdjson } from "@foldstream/sdk/testing";
import OrderTotals from "../src/index";

const SAMPLES = new URL("../../../../../examples/order-totals/events.ndjson", import.meta.url);

const placed = (customer: string, order: string, total_cents: number, time?: string) =>
  event(`orders.${customer}.placed`, { order, total_cents }, { time });

test("orders add up per customer and day", () => {
  const orders = new Harness(OrderTotals);
  orders.given(
    placed("ada", "1", 1_000, "2026-10-01T23:59:59Z"),
    placed("ada", "2", 500, "2026-10-02T00:00:00Z"),
    placed("grace", "3", 700),
    event("orders.ada.paid", { order: "1", method: "card" }),
    event("orders.ada.shipped", { order: "1", carrier: "post" }),
  );

  const totals = { orders: 2, total_cents: 1_500, paid_cents: 1_000, shipped: 1 };
  assert.deepEqual(orders.query("customer", { customer: "ada" }), totals);
  const days = orders.query("days", { customer: "ada", from: "2026-10-02", to: "2026-10-30" });
  assert.deepEqual(days, [["2026-10-02", { orders: 1, total_cents: 500, paid_cents: 0, shipped: 0 }]]);
  orders.assertSameForAnyBatching();
});

test("cancelled and returned orders count on the day they were placed", () => {
  const orders = new Harness(OrderTotals);
  orders.given(
    placed("ada", "1", 1_000, "2026-10-01T10:00:00Z"),
    placed("ada", "2", 500, "2026-10-01T11:00:00Z"),
    event("orders.ada.cancelled", { order: "1" }, { time: "2026-10-03T00:00:00Z" }),
    event("orders.ada.returned", { order: "2", refund_cents: 200 }),
  );

  // A second cancellation finds no order.
  orders.given(event("orders.ada.cancelled", { order: "1" }));
  const totals = { orders: 1, total_cents: 300, paid_cents: 0, shipped: 0 };
  assert.deepEqual(orders.entries("day/"), { "day/ada/2026-10-01": totals });
});

test("the ranking has each customer once and the largest total first", () => {
  const orders = new Harness(OrderTotals);
  orders.given(placed("ada", "1", 100), placed("grace", "2", 900), placed("ada", "3", 5_000));
  orders.given(event("orders.ada.cancelled", { order: "3" }));

  const [grace, ada] = [
    { customer: "grace", total_cents: 900 },
    { customer: "ada", total_cents: 100 },
  ];
  assert.deepEqual(orders.query("top-customers", { limit: 1 }), [grace]);
  assert.deepEqual(orders.query("top-customers"), [grace, ada]);
});

test("an event without its fields is rejected", () => {
  const orders = new Harness(OrderTotals);
  const bad = event("orders.ada.placed", {});
  assert.throws(() => orders.given(placed("ada", "1", 1), bad), Reject);
  // What came before it is kept.
  assert.deepEqual(orders.query("top-customers"), [{ customer: "ada", total_cents: 1 }]);
});

test("all samples are applied", () => {
  const orders = new Harness(OrderTotals);
  orders.given(...eventsFromNdjson(readFileSync(SAMPLES, "utf8")));
  assert.equal(Object.keys(orders.entries("customer/")).length, 8);
  orders.assertSameForAnyBatching();
});
