/** Data of events is checked as in every SDK: `guest-sdk/conformance/data.json`. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import {
  Event,
  i64,
  json,
  map,
  number,
  optional,
  Projection,
  record,
  Reject,
  text,
  u64,
  withDefault,
  type Type,
} from "../src/index";
import { event, Harness } from "../src/testing";

interface Vectors {
  accepted: { data: string; stored: unknown }[];
  rejected: string[];
}

const path = new URL("../../conformance/data.json", import.meta.url);
const vectors = JSON.parse(readFileSync(path, "utf8")) as Vectors & { maps: Vectors };

const Placed = record({
  order: text,
  cents: u64,
  delta: withDefault(i64, 0),
  rate: withDefault(number, 0.5),
  by: optional(record({ name: text })),
});
const Mapped = record({ counts: map(u64), note: json });

class Orders extends Projection {
  static override manifest = { name: "orders", subjects: ["orders.>"] };

  placed = this.value("placed", Placed);
  mapped = this.value("mapped", Mapped);

  apply(event: Event) {
    if (event.kind === "placed") this.placed.set(event.json(Placed));
    else this.mapped.set(event.json(Mapped));
  }
}

for (const [kind, { accepted, rejected }] of [["placed", vectors] as const, ["mapped", vectors.maps] as const]) {
  for (const { data, stored } of accepted) {
    test(`${data} is taken as in every language`, () => {
      const orders = new Harness(Orders).given(event(`orders.1.${kind}`, data));
      assert.deepEqual(orders.get(kind), stored);
    });
  }
  for (const data of rejected) {
    test(`${data} is rejected as in every language`, () => {
      const orders = new Harness(Orders);
      assert.throws(() => orders.given(event(`orders.1.${kind}`, data)), Reject);
      assert.deepEqual(orders.entries(), {});
    });
  }
}

/** What data becomes by a type, or the message of its rejection. */
function read(data: string, type: Type<unknown>): unknown {
  try {
    return new Event(1, 0, "x.a", "a", new Map(), data).json(type);
  } catch (error) {
    assert.ok(error instanceof Reject, String(error));
    return error.message.replace("event 1 (x.a): ", "");
  }
}

test("a number that was rounded, or is there twice, is named as it was written", () => {
  const most = "expected an integer from 0 to 9007199254740991, found";
  assert.equal(read('{"cents": 9007199254740990.7}', record({ cents: u64 })), `cents: ${most} 9007199254740990.7`);
  assert.equal(read("1e2", u64), `${most} 1e2`);
  assert.equal(read('{"cents":1,"cents":1}', record({ cents: u64 })), `cents: ${most} a member that occurs twice`);
  assert.equal(read('{"a":{"b":1,"b":1}}', json), "expected JSON, found a member that occurs twice");
  assert.equal(read('{"a":1,"a":1}', record({ a: optional(number) })), "a: expected a finite number, found a member that occurs twice");
});

test("data that is not written as JavaScript writes it is read alike", () => {
  for (const data of [
    '{"2":1,"1":2,"a":[ 1.0 , -2.50e1,"\\"\\\\",{"":null}]}',
    ' [ "\\u0041\\n" , 1.0,[[[]]],{"__proto__":{"a":1.0}} ] ',
    '{"constructor":1.0,"toJSON":{"x":[]},"length":0}',
    '"\\\\"',
    " 5.0 ",
  ]) {
    assert.deepEqual(read(data, json), JSON.parse(data));
  }
  const deep = `${"[ ".repeat(2_000)}1.0${"]".repeat(2_000)}`;
  assert.deepEqual(read(`{"a":1,"ignored":${deep}}`, record({ a: u64 })), { a: 1 });
  const long = `"${"\\\\".repeat(100_000)}\\"",1.0`;
  assert.deepEqual(read(`{"ignored":[${long}],"a":1}`, record({ a: u64 })), { a: 1 });
});

test("minus zero is zero from the start, as it is once it was stored", () => {
  class Zeros extends Projection {
    static override manifest = { name: "zeros", subjects: ["zeros.>"] };

    zero = this.table("zero", text, number);
    any = this.table("any", text, json);
    seen = this.table("seen", text, text);

    apply(event: Event) {
      for (const table of [this.zero, this.any]) {
        const before = table.get("a");
        if (before !== undefined) this.seen.set(table.name, String(1 / (before as number)));
        table.set("a", event.json(number));
        table.set("b", -0);
      }
    }
  }
  const zeros = new Harness(Zeros).given(event("zeros.a", "-0"), event("zeros.a", "-0.0"), event("zeros.a", "-0"));
  assert.deepEqual(Object.values(zeros.entries("seen/")), ["Infinity", "Infinity"]);
  zeros.assertSameForAnyBatching();
});
