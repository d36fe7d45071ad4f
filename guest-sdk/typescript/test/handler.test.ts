/** What a handler publishes and sets, and what becomes of it when an event or a timer fails. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Effects,
  type Event,
  type Fired,
  Handler,
  type HandlerManifest,
  Mismatch,
  Reject,
  Retry,
  hours,
  json,
  map,
  minutes,
  query,
  seconds,
  text,
  u64,
} from "../src/index";
import { Event as MadeEvent } from "../src/events";
import { Instance } from "../src/instance";
import { Harness, event } from "../src/testing";

const START = Date.parse("2026-01-01T00:00:00Z") * 1_000;

/** Does what the data of an event asks for. */
class Asked extends Handler {
  static override manifest: HandlerManifest = {
    name: "asked",
    subjects: ["in.*.*"],
    publishes: ["out.>"],
    replies: true,
    timers: true,
  };
  counts = this.table("count", text, u64);

  handle(event: Event, effects: Effects): void {
    const key = event.token(2);
    this.counts.set(key, (this.counts.get(key) ?? 0) + 1);
    const { to, data, options, timer, at, cancel, reply, fail } = event.json(json) as any;
    if (to !== undefined) effects.publish(to, data, options);
    if (timer !== undefined) effects.setTimer(timer, at ?? event.timeUs + minutes(10), options);
    if (cancel !== undefined) effects.cancelTimer(cancel);
    if (reply !== undefined) effects.reply(event, reply);
    if (fail === "retry") throw new Retry("not yet");
    if (fail !== undefined) throw new Reject("it was asked to fail");
  }

  override onTimer(timer: Fired, effects: Effects): void {
    effects.publish("out.fired", [timer.name, timer.part(2), timer.atUs, timer.time, timer.sequence, timer.key ?? null]);
    if (timer.name === "again") effects.setTimer("again", timer.timeUs + minutes(10));
    if (timer.name.startsWith("bad")) throw new Reject("a bad timer");
  }

  override queries = { count: query("How many events of a key", text, (key) => this.counts.get(key) ?? 0) };
}

const asks = (data: object, more = {}) => event("in.a.ask", data, more);

test("messages have what they are given", () => {
  const asked = new Harness(Asked).given(
    asks({ to: "out.a.done" }),
    asks({ to: "out.a.done", data: { z: 1, a: [null, "ë"] }, options: { type: "other", headers: { "x-a": "1" }, key: "k" } }),
    asks({ to: "out.a.done", data: "plain", options: { notBeforeUs: START, timeToLiveS: 60, expectedLast: 0 } }),
    asks({ to: "out.a.done", data: 5, options: { expectedLast: { subject: "out.a.>", sequence: 7 } } }),
  );
  const to = { subject: "out.a.done", type: "done" };
  assert.deepEqual(asked.published(), [
    { ...to, data: "" },
    { ...to, data: { z: 1, a: [null, "ë"] }, type: "other", headers: { "x-a": "1" }, key: "k" },
    { ...to, data: "plain", notBeforeUs: START, timeToLiveS: 60, expectedLast: { subject: "out.a.done", sequence: 0 } },
    { ...to, data: 5, expectedLast: { subject: "out.a.>", sequence: 7 } },
  ]);
  assert.equal(asked.query("count", "a"), 4);
  asked.assertSameForAnyBatching();
});

test("a failing event publishes and sets nothing, and those before it do", () => {
  for (const [fail, kind] of [["reject", Reject], ["retry", Retry]] as const) {
    const asked = new Harness(Asked);
    const before = asks({ to: "out.before", timer: "kept" });
    assert.throws(() => asked.given(before, asks({ to: "out.lost", timer: "lost", cancel: "kept", fail })), kind);
    assert.deepEqual(asked.published().map(({ subject }) => subject), ["out.before"]);
    assert.deepEqual(asked.timers().map(({ name }) => name), ["kept"]);
    assert.equal(asked.query("count", "a"), 1);
  }
});

test("values that no message can have reject the event by name", () => {
  for (const [data, message] of [
    [{ to: 5 }, "the subject of a message: expected a text, found 5"],
    [{ to: "out.a", options: { type: 1 } }, "a message to out.a: type: expected a text"],
    [{ to: "out.a", options: { headers: { a: 1 } } }, "a message to out.a: headers: a: expected a text"],
    [{ to: "out.a", options: { key: [] } }, "a message to out.a: key: expected a text"],
    [{ to: "out.a", options: { notBeforeUs: 1.5 } }, "notBeforeUs: expected an integer"],
    [{ to: "out.a", options: { timeToLiveS: 0 } }, "timeToLiveS: expected 1 to 2147483647 seconds, found 0"],
    [{ to: "out.a", options: { timeToLiveS: 2 ** 31 } }, "timeToLiveS: expected 1 to 2147483647 seconds"],
    [{ to: "out.a", options: { expectedLast: -1 } }, "expectedLast: expected an integer"],
    [{ to: "out.a", options: { expectedLast: { subject: "out.>" } } }, "expectedLast: missing field `sequence`"],
    [{ timer: "a", at: -1 }, "timer a: its time in microseconds: expected an integer"],
    [{ cancel: {} }, "the name of a timer: expected a text"],
  ] as const) {
    assert.throws(
      () => new Harness(Asked).given(asks(data)),
      (error) => error instanceof Mismatch && error.message.includes(message),
      message,
    );
  }
  class Careless extends Handler {
    static override manifest: HandlerManifest = { name: "careless", subjects: ["a"], publishes: ["b"] };
    handle(_: Event, effects: Effects) {
      effects.publish("b", { total: NaN });
    }
  }
  assert.throws(() => new Harness(Careless).given(event("a")), /a message to b: data: expected JSON, found NaN/);
});

test("data that has no form in JSON is refused, and what has one is written like an answer", () => {
  const data: unknown[] = [];
  class Data extends Handler {
    static override manifest: HandlerManifest = { name: "data", subjects: ["in"], publishes: ["out"] };
    kept = this.table("kept", text, json);
    named = this.table("named", text, map(u64));
    handle(event: Event, effects: Effects): void {
      const [how, value] = data[event.sequence - 1] as [string, any];
      if (how === "publish") effects.publish("out", value);
      else if (how === "json") this.kept.set("a", value);
      else this.named.set("a", value);
    }
    override queries = { answer: query("The same, as an answer", () => data[0]) };
  }
  const day = new Date(0);
  const own = { toJSON: () => ({ total: 5 }) };
  data.push(["publish", { at: day, own }], ["json", [day]], ["map", Object.assign(Object.create(null), { a: 1 })]);
  const written = new Harness(Data).given(event("in"), event("in"), event("in"));
  const at = "1970-01-01T00:00:00.000Z";
  assert.deepEqual(written.published()[0]!.data, { at, own: { total: 5 } });
  assert.deepEqual(written.query("answer")[1], { at, own: { total: 5 } });
  assert.deepEqual(written.entries(), { "kept/a": [at], "named/a": { a: 1 } });

  class Order {
    total = 5;
  }
  for (const [how, value, message] of [
    ["publish", new Map([["a", 1]]), "a message to out: data: expected JSON, found a value of class Map"],
    ["publish", { inside: [new Set([1])] }, "found a value of class Set"],
    ["publish", { order: new Order() }, "found a value of class Order"],
    ["publish", { bytes: new Uint8Array(2) }, "found a value of class Uint8Array"],
    ["publish", { id: 2 ** 53 }, "an integer beyond 2^53 - 1, about 9007199254740992, is not exact"],
    ["json", new Map([["a", 1]]), "a value for table kept: expected JSON, found a value of class Map"],
    ["map", new Map([["a", 1]]), "a value for table named: expected an object, found a value of class Map"],
  ] as const) {
    data.splice(0, data.length, [how, value]);
    assert.throws(
      () => new Harness(Data).given(event("in")),
      (error) => error instanceof Mismatch && error.message.includes(message),
      message,
    );
  }
});

test("asynchronous code is refused, because nothing waits for it", async () => {
  const late: (() => void)[] = [];
  class Waits extends Handler {
    static override manifest: HandlerManifest = { name: "waits", subjects: ["*"], publishes: ["out"], timers: true };
    handle(event: Event, effects: Effects): void {
      if (event.subject === "thenable") return { then() {} } as any;
      late.push(() => effects.publish("out"), () => effects.setTimer("a", 0), () => effects.cancelTimer("a"));
    }
    override async onTimer() {}
    override queries = {
      async: query("Waits", async () => 1),
      thenable: query("Waits", text, () => ({ then() {} })),
    };
  }
  const waits = new Harness(Waits).given(event("late"));
  assert.throws(() => waits.given(event("thenable")), /^TypeError: handle must not be async/);
  assert.throws(() => waits.query("async"), /^TypeError: query async must not be async/);
  assert.throws(() => waits.query("thenable", ""), /query thenable must not be async/);
  for (const act of late) assert.throws(act, /the event is handled/);
  assert.deepEqual([waits.published(), waits.timers()], [[], []]);
});

test("what the manifest does not declare is refused", () => {
  class Silent extends Asked {
    static override manifest: HandlerManifest = { name: "silent", subjects: ["in.*.*"] };
  }
  assert.throws(() => new Harness(Silent).given(asks({ to: "out.a" })), /out\.a, which its manifest does not declare/);
  assert.throws(() => new Harness(Silent).given(asks({ timer: "a" })), /it sets timers, which its manifest/);
  const uncovered = asks({ to: "out.a", options: { expectedLast: { subject: "out.b", sequence: 0 } } });
  assert.throws(() => new Harness(Asked).given(uncovered), /expects the last sequence of out\.b, which does not cover it/);
});

test("replies go to the inbox that the event names, and nowhere else", () => {
  const reply = (inbox?: string) =>
    asks({ reply: { ok: true } }, { headers: inbox === undefined ? {} : { "foldstream-reply-to": inbox } });
  const asked = new Harness(Asked).given(reply("_INBOX.abc.1"), reply());
  assert.deepEqual(asked.published(), [{ subject: "_INBOX.abc.1", type: "reply", data: { ok: true } }]);
  const strange = ["", "_INBOX", "_INBOX.", "_INBOX.a..b", "_INBOX.*", "_INBOX.>", "_INBOX.a b", "_INBOX.ä", "out.1"];
  asked.given(...strange.map(reply), reply(`_INBOX.${"a".repeat(300)}`));
  assert.equal(asked.published().length, 1);
  asked.given(reply("_INBOX.+,-/=?~!()"));
  assert.equal(asked.published().length, 2);
});

test("timers are set, replaced and cancelled, and fire in the order of their times", () => {
  const asked = new Harness(Asked).given(
    asks({ timer: "a/1" }),
    asks({ timer: "b/2", at: START + hours(1), options: { key: "k" } }),
    asks({ timer: "c/3" }),
    asks({ timer: "a/1", at: START + hours(2) }),
    asks({ cancel: "c/3" }),
    asks({ cancel: "nothing" }),
  );
  assert.deepEqual(asked.timers(), [
    { name: "b/2", atUs: START + hours(1), key: "k" },
    { name: "a/1", atUs: START + hours(2) },
  ]);
  asked.after(minutes(30));
  assert.deepEqual(asked.published(), []);
  asked.after(hours(3));
  assert.deepEqual(asked.published().map(({ data }) => data), [
    ["b/2", "2", START + hours(1), "2026-01-01T01:00:00.000000000Z", 7, "k"],
    ["a/1", "1", START + hours(2), "2026-01-01T02:00:00.000000000Z", 8, null],
  ]);
  assert.deepEqual(asked.timers(), []);
  asked.assertSameForAnyBatching();
});

test("a timer may be set again when it fires", () => {
  const asked = new Harness(Asked).given(asks({ timer: "again" })).after(minutes(35));
  assert.equal(asked.published().length, 3);
  assert.deepEqual(asked.timers(), [{ name: "again", atUs: START + minutes(40) }]);
  asked.given(asks({ cancel: "again" })).after(hours(1));
  assert.equal(asked.published().length, 3);
  asked.assertSameForAnyBatching();
});

test("a timer that fails stays pending, and does nothing", () => {
  const asked = new Harness(Asked).given(asks({ timer: "bad" }), asks({ timer: "good", at: START + seconds(5) }));
  assert.throws(() => asked.after(hours(1)), /a bad timer/);
  assert.deepEqual(asked.timers().map(({ name }) => name), ["bad"]);
  assert.deepEqual(asked.published().map(({ data }) => (data as unknown[])[0]), ["good"]);
});

test("mistakes in handlers are named", () => {
  class Async extends Handler {
    static override manifest: HandlerManifest = { name: "a", subjects: ["a"], publishes: ["b"] };
    async handle(_: Event, effects: Effects) {
      effects.publish("b");
    }
  }
  class NoTimers extends Handler {
    static override manifest: HandlerManifest = { name: "a", subjects: ["a"], timers: true };
    handle(event: Event, effects: Effects) {
      effects.setTimer("a", event.timeUs);
    }
  }
  class Hidden extends Handler {
    static override manifest: HandlerManifest = { name: "a", subjects: ["a"], publishes: ["b"] };
    seen = 0;
    handle(_: Event, effects: Effects) {
      effects.publish("b", ++this.seen);
    }
  }
  assert.throws(() => new Harness(Async).given(event("a")), /handle must not be async/);
  assert.throws(() => new Harness(NoTimers).given(event("a")).after(1), /timer a fired, and this handler has no onTimer/);
  const hidden = new Harness(Hidden).given(event("a"), event("a"));
  assert.throws(() => hidden.assertSameForAnyBatching(), /depends on the batches: message 1 is /);
});

test("effects reach the outbox with the index of their cause, after their event", () => {
  const calls: unknown[] = [];
  const memory = { get: () => undefined, putMany: () => calls.push("put"), scan: () => ({ entries: [], more: false }) };
  const outbox = {
    publish: (cause: number, messages: readonly unknown[]) => calls.push([cause, messages.length]),
    changeTimers: (cause: number, changes: readonly unknown[]) => calls.push([cause, "timers", changes.length]),
  };
  const made = (sequence: number, data: object) =>
    new MadeEvent(sequence, 1, "in.a.ask", "ask", new Map(), JSON.stringify(data));
  const events = [made(1, {}), made(2, { to: "out.a", timer: "a" }), made(3, { to: "out.b", fail: "retry" })];
  const failed = new Instance(Asked, memory, outbox).apply(events);
  assert.deepEqual([failed?.index, failed?.retry], [2, true]);
  assert.deepEqual(calls, [[1, 1], [1, "timers", 1]]);
});
