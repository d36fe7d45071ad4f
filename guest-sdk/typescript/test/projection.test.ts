/** What a projection sees, what becomes of its errors, and what tables do over batches. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Event,
  InvalidArguments,
  type Manifest,
  Mismatch,
  NotFound,
  Projection,
  Reject,
  Retry,
  type TypeOf,
  addDays,
  date,
  i64,
  json,
  list,
  map,
  maybe,
  nothing,
  number,
  oneOf,
  optional,
  query,
  record,
  tagged,
  text,
  timestamp,
  tuple,
  u64,
  u8,
  withDefault,
} from "../src/index";
import { summary } from "../src/errors";
import { Event as MadeEvent } from "../src/events";
import { Instance } from "../src/instance";
import { parse } from "../src/parse";
import { Harness, event, eventsFromNdjson } from "../src/testing";

const Added = record({ amount: i64 });
const Totals = record({ count: u64, last: list(i64) });

class Sums extends Projection {
  static override manifest: Manifest = { name: "sums", subjects: ["sums.>"] };
  totals = this.table("total", text, Totals);
  days = this.table("day", [text, date], u64);
  all = this.value("all", i64);

  apply(event: Event): void {
    const name = event.token(2);
    switch (event.kind) {
      case "added": {
        const { amount } = event.json(Added);
        if (amount === 13) throw new Reject("13 is no amount");
        if (amount === 14) throw new Retry("not yet", { cause: new Error("away") });
        if (amount === 15) (undefined as unknown as { customer: () => void }).customer();
        const totals = this.totals.edit(name);
        totals.count += amount === 16 ? -99 : 1;
        totals.last.push(amount);
        if (amount === 17) totals.count = NaN;
        this.days.set([name, event.date], amount === 17 ? 0 : totals.count);
        this.all.set((this.all.get() ?? 0) + amount);
        break;
      }
      case "removed":
        this.totals.delete(name);
        break;
      case "expire":
        this.days.deleteScan({ under: name, stop: addDays(event.date, -2) });
    }
  }

  override queries = {
    total: query("The totals of a name", text, (name) => {
      const totals = this.totals.get(name);
      if (totals === undefined) throw new NotFound();
      return totals;
    }),
    days: query("The days of a name", json, (how) => [...this.days.scan(how as object)].map(([[, day]]) => day.slice(8))),
    careless: query("It writes", () => this.all.set(1)),
  };
}

const added = (name: string, amount: unknown, time?: string) => event(`sums.${name}.added`, { amount }, { time });

test("values are changed in place and stored once", () => {
  const sums = new Harness(Sums);
  sums.given(added("a", 1), added("a", 2), added("b", 5), event("sums.b.removed"), event("other.a.added", {}));
  assert.deepEqual(sums.entries("total/"), { "total/a": { count: 2, last: [1, 2] } });
  assert.equal(sums.get("all"), 8);
  sums.assertSameForAnyBatching();
});

test("what came before a failing event is kept", () => {
  for (const [bad, kind, message] of [
    [added("a", 13), Reject, "13 is no amount"],
    [added("a", 14), Retry, "not yet: Error: away"],
    [added("a", "x"), Reject, "event 2 (sums.a.added): amount: expected an integer"],
    [event("sums.a.added", new Uint8Array([255])), Reject, "event 2 (sums.a.added): the data is not UTF-8"],
    [event("sums.a.added", "{"), Reject, "event 2 (sums.a.added): "],
    [event("sums.a.added", '{"amount":9007199254740993}'), Reject, "amount: expected an integer from -9007199254740991"],
    [added("b", 17), Mismatch, "the value of total/b cannot be stored: count: expected an integer from 0"],
    [added("b", 16), Mismatch, "a value for table day: expected an integer from 0"],
    [added("ë".repeat(512), 1), Mismatch, "a key has 1030 bytes; at most 1024 are allowed"],
    [added("a", 15), TypeError, "TypeError: "],
  ] as const) {
    const sums = new Harness(Sums);
    let thrown: unknown;
    assert.throws(
      () => sums.given(added("a", 1), bad, added("a", 3)),
      (error) => {
        thrown = error;
        return error instanceof kind;
      },
      message,
    );
    assert.ok(summary(thrown).includes(message), summary(thrown));
    assert.deepEqual(sums.get("total/a"), { count: 1, last: [1] });
  }
});

test("what get returns is a copy", () => {
  class Copies extends Projection {
    static override manifest: Manifest = { name: "copies", subjects: ["a"] };
    totals = this.table("total", text, Totals);
    apply() {
      const mine = { count: 0, last: [] as number[] };
      this.totals.set("a", mine);
      this.totals.set("b", mine);
      mine.count = 9;
      this.totals.get("a")!.count = 9;
      this.totals.get("b")!.last.push(9);
      assert.ok(this.totals.has("a") && !this.totals.has("c"));
    }
  }
  const copies = new Harness(Copies).given(event("a"));
  assert.deepEqual([copies.get("total/a"), copies.get("total/b")], Array(2).fill({ count: 0, last: [] }));
});

test("a value held over a scan is stored as it is at the end", () => {
  class Scans extends Projection {
    static override manifest: Manifest = { name: "scans", subjects: ["a"] };
    totals = this.table("total", text, Totals);
    apply() {
      const mine = this.totals.edit("a");
      mine.count += 1;
      assert.deepEqual([...this.totals.scan()].map(([, { count }]) => count), [mine.count]);
      mine.count += 1;
    }
  }
  const scans = new Harness(Scans).given(event("a"), event("a"));
  assert.deepEqual(scans.get("total/a"), { count: 4, last: [] });
  scans.assertSameForAnyBatching();
});

test("scans cover what they say", () => {
  const sums = new Harness(Sums);
  sums.given(...[..."xyz"].flatMap((name) => [1, 2, 3, 4, 5].map((day) => added(name, 1, `2026-11-0${day}T12:00:00Z`))));
  const days = (how: object) => sums.query("days", { under: "y", ...how });
  assert.deepEqual(days({}), ["01", "02", "03", "04", "05"]);
  assert.deepEqual(days({ start: "2026-11-02", stop: "2026-11-04" }), ["02", "03"]);
  assert.deepEqual(days({ start: "2026-11-02", through: "2026-11-04" }), ["02", "03", "04"]);
  assert.deepEqual(days({ backwards: true, limit: 2 }), ["05", "04"]);
  assert.deepEqual(days({ after: ["y", "2026-11-04"] }), ["05"]);
  assert.deepEqual(days({ start: "2026-11-04", stop: "2026-11-02" }), []);
  assert.equal(sums.query("days", {}).length, 15);
  sums.given(event("sums.y.expire", {}, { time: "2026-11-05T00:00:00Z" }));
  assert.deepEqual(days({}), ["03", "04", "05"]);
  assert.equal(sums.query("days", {}).length, 13);
});

test("texts are found by how they begin", () => {
  class Names extends Projection {
    static override manifest: Manifest = { name: "names", subjects: ["a"] };
    names = this.table("name", [text, u64], nothing);
    apply(event: Event) {
      this.names.set([event.json(text), 1], null);
    }
    override queries = {
      named: query("", text, (startingWith) => [...this.names.scan({ startingWith })].map(([[name]]) => name)),
    };
  }
  const names = ["red", "red wagon", "red/blue", "rede\u0301", "reD", "green", "r\u{10fffe}"];
  const harness = new Harness(Names).given(...names.map((name) => event("a", JSON.stringify(name))));
  assert.deepEqual(harness.query("named", "red").sort(), ["red", "red wagon", "red/blue", "rede\u0301"].sort());
  assert.deepEqual(harness.query("named", "r\u{10fffe}"), ["r\u{10fffe}"]);
  assert.equal(harness.query("named", "").length, names.length);
});

test("queries say what is wrong", () => {
  const sums = new Harness(Sums).given(added("a", 1));
  assert.deepEqual(sums.query("total", "a"), { count: 1, last: [1] });
  assert.throws(() => sums.query("total", "nobody"), NotFound);
  assert.throws(() => sums.query("total", 5), InvalidArguments);
  assert.throws(() => sums.query("total"), InvalidArguments);
  assert.throws(() => sums.query("toString"), RangeError);
  assert.throws(() => sums.query("careless"), /a query cannot change table all/);
  assert.equal(sums.get("all"), 1);
});

test("values are read and written in the order of their type", () => {
  const Parcel = record({
    id: text,
    colour: oneOf("red", "blue"),
    note: optional(text),
    at: timestamp,
    labels: map(u8),
    pair: tuple(text, number),
    more: withDefault(list(json), []),
  });
  const given = `{"pair":["p",1.5],"labels":{"x":1},"extra":0,"at":"2026-11-23t01:30:00.5+02:00","colour":"red","id":"ë"}`;
  assert.equal(
    JSON.stringify(Parcel.check(parse(given))),
    `{"id":"ë","colour":"red","note":null,"at":"2026-11-22T23:30:00.500000000Z","labels":{"x":1},"pair":["p",1.5],"more":[]}`,
  );
  for (const [type, value, message] of [
    [Parcel, {}, "missing field `id`"],
    [record({ a: record({ b: u8 }) }), { a: { b: -1 } }, "a: b: expected an integer from 0 to 255, found -1"],
    [list(text), ["a", 1], "[1]: expected a text, found 1"],
    [number, NaN, "expected a finite number"],
    [text, "\ud800", "half of a pair of surrogates is no text"],
    [json, { a: [undefined] }, "expected JSON"],
    [json, parse('{"id":9007199254740993}'), "an integer beyond 2^53 - 1, about 9007199254740992, is not exact"],
    [map(json), parse('{"id":-1e300}'), "id: an integer beyond 2^53 - 1"],
    [oneOf("a"), "b", "expected one of a"],
    [tuple(text), [], "expected a list of 1"],
    [record({}), [], "expected an object, found a list"],
  ] as const) {
    assert.throws(() => type.check(value), (error) => error instanceof Mismatch && error.message.includes(message), message);
  }
});

test("fields may be left out, and records are told apart by a text", () => {
  const Card = record({ kind: oneOf("card"), number: text });
  const Cash = record({ kind: oneOf("cash"), change: maybe(u64) });
  const Payment = tagged("kind", { card: Card, cash: Cash });
  for (const given of ['{"kind":"card","number":"1"}', '{"kind":"cash"}', '{"kind":"cash","change":2}']) {
    const read = Payment.check(parse(given));
    assert.equal(JSON.stringify(read), given);
    assert.equal(JSON.stringify(json.check(read)), given);
  }
  const Odd = record({ constructor: maybe(text), ["__proto__"]: maybe(text), toString: text });
  for (const given of ['{"toString":"t"}', '{"constructor":"c","__proto__":"p","toString":"t"}']) {
    assert.equal(JSON.stringify(Odd.check(parse(given))), given);
  }
  assert.throws(() => Odd.check({}), /missing field `toString`/);
  const read: TypeOf<typeof Payment> = { kind: "cash", change: undefined };
  assert.equal(JSON.stringify(Payment.check(read)), '{"kind":"cash"}');
  for (const [value, message] of [
    [{}, "kind: expected one of card, cash, found nothing"],
    [{ kind: "constructor" }, "kind: expected one of card, cash, found constructor"],
    [{ kind: "card", number: 1 }, "number: expected a text"],
    [{ kind: "cash", change: null }, "change: expected an integer"],
    [[], "expected an object, found a list"],
  ] as const) {
    assert.throws(() => Payment.check(value), (error) => error instanceof Mismatch && error.message.includes(message), message);
  }
});

test("messages for people and beginnings of keys have no half characters", () => {
  const cut = "a🦀".slice(0, 2);
  assert.equal(summary(new Reject(`bad ${cut}`, { cause: `thrown ${cut}` })), "bad a\ufffd: thrown: thrown a\ufffd");
  assert.equal(summary(new RangeError(cut), () => ` ${cut}`), "RangeError: a\ufffd a\ufffd");
  class Starts extends Projection {
    static override manifest: Manifest = { name: "starts", subjects: ["a"] };
    seen = this.table("seen", text, u64);
    apply() {
      for (const _ of this.seen.scan({ startingWith: cut }));
    }
  }
  assert.throws(() => new Harness(Starts).given(event("a")), /half of a pair of surrogates is no text/);
});

test("a message tells of all errors of an aggregate, and of what cannot be shown", () => {
  const many = new AggregateError([new RangeError("a"), new Reject("b"), "c", 4, 5], "all failed");
  assert.equal(summary(many), "AggregateError: all failed: RangeError: a; b; thrown: c; thrown: 4");
  const odd = { toString: () => assert.fail("as well") };
  for (const thrown of [odd, Object.create(null), { toString: () => ({}), valueOf: () => ({}) }]) {
    assert.equal(summary(thrown), "thrown: a value that cannot be shown");
  }
  assert.equal(summary(Symbol("s")), "thrown: Symbol(s)");
});

test("mistakes in declarations are named", () => {
  class Twice extends Projection {
    static override manifest: Manifest = { name: "a", subjects: ["a"] };
    one = this.table("t", text, u64);
    two = this.value("t", u64);
    apply() {}
  }
  class NoKey extends Projection {
    static override manifest: Manifest = { name: "a", subjects: ["a"] };
    one = this.table("t", list(text), u64);
    apply() {}
  }
  class Async extends Projection {
    static override manifest: Manifest = { name: "a", subjects: ["a"] };
    async apply() {}
  }
  assert.throws(() => new Harness(Twice), /two tables are named "t"/);
  assert.throws(() => new Harness(NoKey), /a key is 1 to 4 texts/);
  assert.throws(() => new Harness(Async).given(event("a")), /apply must not be async/);
  assert.throws(() => new Sums(), /a host or a test makes modules/);
});

test("dependence on batches is found", () => {
  class Hidden extends Projection {
    static override manifest: Manifest = { name: "hidden", subjects: ["a"] };
    counts = this.table("count", text, u64);
    seen = 0;
    apply() {
      this.seen += 1;
      this.counts.set("a", this.seen);
    }
  }
  const hidden = new Harness(Hidden).given(event("a"), event("a"));
  assert.throws(() => hidden.assertSameForAnyBatching(), /depends on the batches: count\/a is 2 as given, and 1/);
});

test("tables that grow too large are written and start empty", () => {
  class Many extends Projection {
    static override manifest: Manifest = { name: "many", subjects: ["a"] };
    counts = this.table("count", u64, u64);
    apply(event: Event) {
      for (let key = 0; key < 20_000; key++) {
        const place = (event.sequence % 2) * 20_000 + key;
        this.counts.set(place, (this.counts.get(place) ?? 0) + 1);
      }
    }
  }
  const many = new Harness(Many).given(event("a"), event("a"), event("a"));
  const counts = Object.values(many.entries());
  assert.deepEqual([counts.filter((n) => n === 1).length, counts.filter((n) => n === 2).length], [20_000, 20_000]);
});

test("an instance answers with the index of the event that failed", () => {
  const memory = { get: () => undefined, putMany() {}, scan: () => ({ entries: [], more: false }) };
  const events = [1, 17, 1].map((amount, n) => new MadeEvent(n, 0, `sums.n${n}.added`, "added", new Map(), JSON.stringify({ amount })));
  assert.equal(new Instance(Sums, memory).apply(events)?.index, 1);
});

test("events are read from lines", () => {
  const events = eventsFromNdjson('{"subject":"sums.a.b","type":"added","time":"2026-11-23T00:00:00Z","data":{"amount":2}}\n\n');
  assert.equal(new Harness(Sums).given(...events).get("day/a/2026-11-23"), 1);
  assert.throws(() => eventsFromNdjson('{"subject":"a"}\n{}'), /line 2 is no event/);
});

test("days move over the ends of months and years", () => {
  assert.equal(addDays("2024-02-28", 2), "2024-03-01");
  assert.equal(addDays("2026-01-01", -1), "2025-12-31");
  assert.throws(() => addDays("1970-01-01", -1), RangeError);
  assert.throws(() => addDays("2026-02-29", 1), RangeError);
  let day = "1970-01-01";
  for (let count = 0; count < 150_000; count++) {
    const next = addDays(day, 1);
    assert.equal(next, new Date(Date.parse(day) + 86_400_000).toISOString().slice(0, 10));
    day = next;
  }
});
