import assert from "node:assert/strict";
import { test } from "node:test";
import { minutes } from "@foldstream/sdk";
import { Harness, event } from "@foldstream/sdk/testing";
import Starter from "../src/index";

test("a paid order is shipped once", () => {
  const starter = new Harness(Starter);
  starter.given(event("orders.42.placed"), event("orders.42.paid"), event("orders.42.paid"));
  starter.after(minutes(60));

  assert.deepEqual(starter.published(), [{ subject: "tasks.42.ship", type: "ship", data: { order: "42" } }]);
  starter.assertSameForAnyBatching();
});

test("an order that is not paid is reminded of", () => {
  const starter = new Harness(Starter);
  starter.given(event("orders.42.placed"));
  assert.deepEqual(starter.published(), []);
  starter.after(minutes(30));

  assert.equal(starter.published()[0]?.subject, "tasks.42.remind");
  assert.deepEqual(starter.query("order", "42"), { paid: false, reminders: 1 });
  starter.assertSameForAnyBatching();
});
