import assert from "node:assert/strict";
import { test } from "node:test";
import { NotFound } from "@foldstream/sdk";
import { Harness, event } from "@foldstream/sdk/testing";
import Starter from "../src/index";

test("visits are counted per page", () => {
  const starter = new Harness(Starter);
  starter.given(event("visits.home"), event("visits.about"), event("visits.home"));

  assert.equal(starter.query("visits", "home"), 2);
  assert.equal(starter.get("page/about"), 1);
  starter.assertSameForAnyBatching();
});

test("a page that nobody visited is not found", () => {
  assert.throws(() => new Harness(Starter).query("visits", "nowhere"), NotFound);
});
