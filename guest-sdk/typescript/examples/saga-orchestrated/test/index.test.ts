import assert from "node:assert/strict";
import { test } from "node:test";
import { seconds } from "@foldstream/sdk";
import { type GivenEvent, Harness, event } from "@foldstream/sdk/testing";
import Fulfilment from "../src/index";

const placed = event("orders.1.placed", { cents: 4_200, item: "lamp", card: "valid", address: "1 Main Street" });
const charged = event("payment.1.charged", { payment: "p-1" });

function orders(...events: GivenEvent[]): Harness {
  return new Harness(Fulfilment).given(...events);
}

function published(orders: Harness): string[] {
  return orders.published().map(({ subject }) => subject.replace(".1.", " "));
}

test("an order is charged, reserved and shipped", () => {
  const fulfilled = orders(placed, charged, event("stock.1.reserved"), event("shipping.1.sent"));
  assert.deepEqual(published(fulfilled), ["payment charge", "stock reserve", "shipping send", "orders fulfilled"]);
  assert.equal(fulfilled.get("saga/order-fulfilment/1").data.payment, "p-1");
  fulfilled.assertSameForAnyBatching();
});

test("a payment that never answers is tried again and then refunded in case", () => {
  const silent = orders(placed).after(seconds(8)).given(event("payment.1.refunded"));
  assert.deepEqual(published(silent), ["payment charge", "payment charge", "payment refund", "orders rejected"]);
  assert.deepEqual(silent.published().at(-1)!.data, { reason: "payment: no answer within 3s" });
  silent.assertSameForAnyBatching();
});

test("goods that cannot be shipped are restocked and then refunded", () => {
  const refused = orders(placed, charged, event("stock.1.reserved"), event("shipping.1.refused"));
  refused.given(event("stock.1.released"), event("payment.1.refunded"));
  assert.deepEqual(published(refused).slice(3), ["stock release", "payment refund", "orders rejected"]);
  refused.assertSameForAnyBatching();
});
