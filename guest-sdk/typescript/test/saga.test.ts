/** Sagas: whatever comes late, twice or not at all, each instance ends with everything done or
 * everything undone. */

import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Effects,
  type Event,
  type Fired,
  Handler,
  type HandlerManifest,
  type NewEntries,
  type OldEntry,
  type TypeOf,
  hours,
  optional,
  record,
  seconds,
  text,
  tuple,
  u64,
} from "../src/index";
import { type RetryPolicy, Saga, type SagaDefinition, Sagas, type Step } from "../src/saga";
import { isDue, keyOfTimer, timerName } from "../src/saga/sagas";
import { type GivenEvent, Harness, event } from "../src/testing";
import { nanosecondsOf } from "../src/time";

const Order = record({ size: u64, payment: optional(text) });
type Order = TypeOf<typeof Order>;

/** A step with a command `do.<key>.<step>`, undone by `undo.<key>.<step>`. */
function step(name: string, retry: RetryPolicy, undo: RetryPolicy, more: Partial<Step<Order>> = {}): Step<Order> {
  return {
    name,
    command: ({ key, id, attempt }) => ({ subject: `do.${key}.${name}`, data: { id, attempt } }),
    succeedsOn: `did.*.${name}`,
    failsOn: `refused.*.${name}`,
    retriesOn: `busy.*.${name}`,
    timeoutUs: seconds(60),
    retry,
    compensation: {
      command: ({ key, id, attempt }) => ({ subject: `undo.${key}.${name}`, data: { id, attempt } }),
      succeedsOn: `undid.*.${name}`,
      failsOn: `stays.*.${name}`,
      timeoutUs: seconds(60),
      retry: undo,
    },
    ...more,
  };
}

const times = (attempts: number): RetryPolicy => ({ attempts });

function tripOf(steps: Step<Order>[], more: Partial<SagaDefinition<Order>> = {}): Saga<Order> {
  return new Saga({
    name: "trip",
    data: Order,
    startsOn: "trips.*.booked",
    steps,
    cancelsOn: "trips.*.cancelled",
    resumesOn: "trips.*.resume",
    skipsOn: "trips.*.skip",
    onCompleted: ({ key }) => ({ subject: `trips.${key}.completed` }),
    onCompensated: ({ key, reason }) => ({ subject: `trips.${key}.given-up`, data: reason }),
    onStuck: ({ key }) => ({ subject: `trips.${key}.stuck` }),
    ...more,
  });
}

function trip(names = ["hotel", "flight", "car"], attempts = 2, undo = times(2)): Saga<Order> {
  return tripOf(names.map((name) => step(name, times(attempts), undo)));
}

/** The saga that `Orders` runs: tests have their own. */
let saga = trip();

class Orders extends Handler {
  static override manifest: HandlerManifest = {
    name: "orders",
    // Newer versions have other steps.
    subjects: ["*.*.*"],
    publishes: ["do.*.*", "undo.*.*", "trips.*.*"],
    timers: true,
    key: { subjectToken: 2 },
  };
  sagas = new Sagas(saga);

  handle(event: Event, effects: Effects): void {
    this.sagas.handle(event, effects);
  }

  override onTimer(timer: Fired, effects: Effects): void {
    this.sagas.onTimer(timer, effects);
  }
}

function runs(definition: Saga<Order>): Harness {
  saga = definition;
  return new Harness(Orders);
}

const happens = (...subjects: string[]): GivenEvent[] => subjects.map((subject) => event(subject, { size: 1 }));
const subjects = (orders: Harness): string[] => orders.published().map(({ subject }) => subject);
const instance = (orders: Harness, key = "7") => orders.get(`saga/trip/${key}`);
const counts = (orders: Harness) => orders.get("saga-count/trip");

/** How far an instance is. */
function place(orders: Harness, key = "7"): string {
  const { status, step } = instance(orders, key);
  return `${status} ${step ?? "-"}`;
}

test("steps follow each other and the saga completes", () => {
  const orders = runs(trip()).given(...happens("trips.7.booked"));
  assert.equal(place(orders), "running hotel");
  assert.equal(orders.timers().length, 1);
  orders.given(...happens("did.7.hotel", "did.7.flight", "did.7.car"));
  assert.deepEqual(subjects(orders), ["do.7.hotel", "do.7.flight", "do.7.car", "trips.7.completed"]);
  assert.equal(place(orders), "completed -");
  orders.assertSameForAnyBatching();
  // It is kept for a day, so that late events are recognised, and then removed.
  orders.given(...happens("did.7.car", "trips.7.booked"));
  assert.deepEqual(counts(orders).ignored, { ended: 2 });
  orders.after(hours(25));
  assert.deepEqual(orders.entries("saga/"), {});
  assert.deepEqual(orders.entries("saga-index/"), {});
  assert.deepEqual([orders.timers().length, subjects(orders).length], [0, 4]);
  assert.deepEqual(counts(orders), { format: 1, now: {}, ended: { completed: 1 }, ignored: { ended: 2 } });
});

test("an instance is stored as docs/sagas.md says", () => {
  const orders = runs(trip()).given(...happens("trips.7.booked"));
  const time = "2026-01-01T00:00:00.000000000Z";
  assert.equal(
    JSON.stringify(instance(orders)),
    JSON.stringify({
      format: 1,
      status: "running",
      step: "hotel",
      since: time,
      started: time,
      updated: time,
      attempt: 1,
      wait: "answer",
      due: "2026-01-01T00:01:00.000000000Z",
      steps: [{ step: "hotel", fate: "waiting" }],
      history: [{ at: time, what: "started by booked" }],
      data: { size: 1, payment: null },
    }),
  );
  assert.deepEqual(orders.entries("saga-index/"), { [`saga-index/trip/running/hotel/${time}/7`]: null });
  assert.deepEqual(orders.timers(), [
    { name: "saga/trip/7", atUs: Date.parse("2026-01-01T00:01:00Z") * 1_000, key: "7" },
  ]);
  const [message] = orders.published();
  const id = `trip/7/${Date.parse(time)}000000/hotel`;
  assert.deepEqual(message, { subject: "do.7.hotel", type: "hotel", data: { id, attempt: 1 }, key: "7" });
});

test("a refusal undoes what was done, the last step first", () => {
  const orders = runs(trip()).given(...happens("trips.7.booked", "did.7.hotel", "did.7.flight", "refused.7.car"));
  assert.equal(place(orders), "compensating flight");
  assert.equal(instance(orders).reason, "car: car");
  orders.given(...happens("undid.7.flight", "undid.7.hotel"));
  assert.deepEqual(subjects(orders).slice(3), ["undo.7.flight", "undo.7.hotel", "trips.7.given-up"]);
  orders.assertSameForAnyBatching();
});

test("a step that times out is in doubt and is undone too", () => {
  const orders = runs(trip()).given(...happens("trips.7.booked")).after(seconds(300));
  assert.deepEqual(subjects(orders).slice(0, 3), ["do.7.hotel", "do.7.hotel", "undo.7.hotel"]);
  // Its answer comes after all, before and after the confirmation.
  orders.given(...happens("did.7.hotel", "undid.7.hotel", "did.7.hotel"));
  assert.equal(place(orders), "compensated -");
  assert.equal(instance(orders).reason, "hotel: no answer within 60s");
  assert.equal(subjects(orders).at(-1), "trips.7.given-up");
  orders.assertSameForAnyBatching();
});

test("an answer that comes while the next attempt waits counts", () => {
  const orders = runs(trip()).given(...happens("trips.7.booked", "busy.7.hotel", "busy.7.hotel"));
  assert.equal(instance(orders).wait, "retry");
  assert.deepEqual(counts(orders).ignored, { duplicate: 1 });
  orders.given(...happens("did.7.hotel")).after(seconds(30));
  assert.deepEqual(subjects(orders), ["do.7.hotel", "do.7.flight"]);
  orders.assertSameForAnyBatching();
});

test("answers that come twice, early or for nobody are named and change nothing", () => {
  const orders = runs(trip()).given(...happens("trips.7.booked", "trips.7.booked", "did.7.hotel", "did.7.hotel"));
  orders.given(...happens("did.7.car", "undid.7.hotel", "refused.7.hotel", "did.8.hotel"));
  assert.equal(
    JSON.stringify(counts(orders).ignored),
    JSON.stringify({ duplicate: 2, early: 2, late: 1, unknown: 1 }),
  );
  assert.deepEqual(subjects(orders), ["do.7.hotel", "do.7.flight"]);
});

test("a compensation that fails is tried again and then waits for an operator", () => {
  const orders = runs(trip()).given(...happens("trips.7.booked", "did.7.hotel", "refused.7.flight", "stays.7.hotel"));
  assert.equal(place(orders), "compensating hotel");
  orders.after(seconds(5)).given(...happens("stays.7.hotel"));
  assert.equal(place(orders), "stuck hotel");
  assert.deepEqual(orders.timers(), []);
  assert.match(instance(orders).reason, /^hotel could not be undone/);
  orders.given(...happens("trips.7.resume", "undid.7.hotel"));
  assert.equal(place(orders), "compensated -");
  assert.equal(instance(orders).reason, "flight: flight");
  assert.deepEqual(subjects(orders).slice(2), [
    "undo.7.hotel",
    "undo.7.hotel",
    "trips.7.stuck",
    "undo.7.hotel",
    "trips.7.given-up",
  ]);
  orders.assertSameForAnyBatching();
});

test("an operator may skip, and a late confirmation frees a stuck instance", () => {
  for (const freedBy of ["trips.7.skip", "undid.7.hotel"]) {
    const orders = runs(trip(["hotel", "flight"], 1, times(1)));
    orders.given(...happens("trips.7.booked", "did.7.hotel", "refused.7.flight", "stays.7.hotel"));
    assert.equal(place(orders), "stuck hotel");
    orders.given(...happens(freedBy));
    assert.equal(place(orders), "compensated -", freedBy);
  }
});

test("cancelling undoes the current step as well", () => {
  const orders = runs(trip()).given(...happens("trips.7.booked", "did.7.hotel", "trips.7.cancelled"));
  orders.given(...happens("undid.7.flight", "undid.7.hotel", "trips.7.cancelled"));
  assert.deepEqual(subjects(orders).slice(2, 4), ["undo.7.flight", "undo.7.hotel"]);
  assert.equal(instance(orders).reason, "cancelled: cancelled");
  assert.deepEqual(counts(orders).ignored, { ended: 1 });
});

test("a saga is not cancelled after its pivot", () => {
  const ship = step("ship", times(Infinity), times(1), { pivot: true });
  const orders = runs(tripOf([step("hotel", times(1), times(1)), ship]));
  orders.given(...happens("trips.7.booked", "did.7.hotel", "trips.7.cancelled"));
  assert.deepEqual(counts(orders).ignored, { late: 1 });
  orders.after(hours(1));
  assert.equal(place(orders), "running ship");
  orders.given(...happens("refused.7.ship", "undid.7.ship", "undid.7.hotel"));
  assert.equal(place(orders), "compensated -");
  orders.assertSameForAnyBatching();
});

test("a step that refused and was done after all is undone, or shown to an operator", () => {
  const orders = runs(trip()).given(...happens("trips.7.booked", "did.7.hotel", "refused.7.flight", "did.7.flight"));
  orders.given(...happens("undid.7.hotel", "undid.7.flight"));
  assert.equal(place(orders), "compensated -");
  assert.ok(subjects(orders).includes("undo.7.flight"));

  orders.given(...happens("trips.8.booked", "refused.8.hotel", "did.8.hotel"));
  assert.equal(place(orders, "8"), "stuck hotel");
  // It has not ended after all.
  assert.deepEqual(counts(orders).ended, { compensated: 1 });
  orders.given(...happens("trips.8.resume", "undid.8.hotel"));
  assert.equal(place(orders, "8"), "compensated -");
  orders.assertSameForAnyBatching();
});

test("a step without a command waits for an event that may come before its turn", () => {
  const paidStep: Step<Order> = {
    name: "paid",
    succeedsOn: { subject: "trips.*.x", type: "com.example.paid" },
    onSuccess: (order, event) => {
      [order.payment] = event.json(tuple(text));
    },
    compensation: { command: ({ key, data }) => ({ subject: `undo.${key}.paid`, data: data.payment ?? "" }) },
  };
  const definition = tripOf([step("hotel", times(1), times(1)), paidStep], {
    onCompleted: undefined,
    onCompensated: undefined,
    onStuck: undefined,
  });
  const paid = (key: string) => event(`trips.${key}.x`, ["p1"], { type: "com.example.paid" });
  const orders = runs(definition);
  // In its turn, before its turn, and twice.
  orders.given(...happens("trips.6.booked", "did.6.hotel"), paid("6"));
  orders.given(...happens("trips.7.booked"), paid("7"), paid("7"), ...happens("did.7.hotel"));
  for (const key of ["6", "7"]) {
    assert.deepEqual([place(orders, key), instance(orders, key).data.payment], ["completed -", "p1"]);
  }
  assert.deepEqual(counts(orders).ignored, { duplicate: 1 });
  // Another type under its subject is not meant.
  orders.given(...happens("trips.6.x"));
  assert.deepEqual(counts(orders).ignored, { duplicate: 1 });

  // What came before its turn is undone as well, and so is what comes after the end.
  orders.given(...happens("trips.8.booked"), paid("8"), ...happens("refused.8.hotel"));
  assert.equal(place(orders, "8"), "compensated -");
  orders.given(...happens("trips.9.booked", "refused.9.hotel"), paid("9"));
  assert.equal(place(orders, "9"), "stuck paid");
  orders.given(...happens("trips.9.resume"));
  assert.equal(place(orders, "9"), "compensated -");
  const undone = orders.published().filter(({ subject }) => subject.startsWith("undo."));
  assert.deepEqual(undone.map(({ subject, data }) => [subject, data]), [["undo.8.paid", "p1"], ["undo.9.paid", "p1"]]);
  assert.deepEqual(counts(orders).ended, { compensated: 2, completed: 2 });
  orders.assertSameForAnyBatching();
});

test("a step without a command that fails before its turn fails at its turn", () => {
  const weather: Step<Order> = { name: "weather", succeedsOn: "did.*.weather", failsOn: "refused.*.weather" };
  const orders = runs(tripOf([step("hotel", times(1), times(1)), weather]));
  orders.given(...happens("trips.6.booked", "refused.6.weather", "refused.6.weather"));
  assert.equal(place(orders, "6"), "running hotel");
  assert.deepEqual(instance(orders, "6").early_failures, [{ step: "weather", why: "weather" }]);
  orders.given(...happens("did.6.hotel", "undid.6.hotel"));
  const { status, reason, early_failures } = instance(orders, "6");
  assert.deepEqual([status, reason, early_failures], ["compensated", "weather: weather", undefined]);
  // A success counts, before the failure and after it.
  for (const [key, first, second] of [["7", "did", "refused"], ["8", "refused", "did"]]) {
    const weathers = [`${first}.${key}.weather`, `${second}.${key}.weather`];
    orders.given(...happens(`trips.${key}.booked`, ...weathers, `did.${key}.hotel`));
    assert.equal(place(orders, key), "completed -");
  }
  // Another step may fail first.
  orders.given(...happens("trips.9.booked", "refused.9.weather", "refused.9.hotel", "refused.9.weather"));
  assert.equal(instance(orders, "9").reason, "hotel: hotel");
  assert.deepEqual(counts(orders).ignored, { duplicate: 1, late: 1, ended: 1 });
  orders.assertSameForAnyBatching();
});

test("hostile keys are kept apart and impossible ones are rejected", () => {
  const orders = runs(trip());
  const odd = ["a/b", "%2F", "saga", "\u0085", "ключ", "-", "🦀"];
  for (const key of odd) orders.given(...happens(`trips.${key}.booked`));
  assert.equal(Object.keys(orders.entries("saga/trip/")).length, odd.length);
  orders.after(seconds(600));
  for (const key of odd) orders.given(...happens(`undid.${key}.hotel`));
  assert.deepEqual(counts(orders).ended, { compensated: odd.length });
  for (const key of ["k".repeat(1_000), "", "/".repeat(200)]) {
    assert.throws(() => orders.given(...happens(`trips.${key}.booked`)), /correlation key of saga trip has \d+ bytes/);
  }
  orders.assertSameForAnyBatching();
});

test("any key returns from the name of its timer", () => {
  for (const key of ["7", "a/b", "50%", "%2F", "\u0085\n\t", "ключ", " ", "..", "saga/x/", "🦀"]) {
    const name = timerName("orders", key);
    assert.doesNotMatch(name, /\p{Cc}/u);
    assert.equal(keyOfTimer("orders", name), key);
    assert.equal(keyOfTimer("order", name), undefined);
  }
  assert.equal(timerName("orders", "\u0085\n%ë"), "saga/orders/%C2%85%0A%25ë");
  assert.equal(keyOfTimer("orders", "saga/orders/%F"), undefined);
});

test("instances of an older definition continue, or say what is missing", () => {
  const old = trip(["hotel", "flight", "car"], 1, times(1));
  const orders = runs(old).given(...happens("trips.1.booked", "trips.2.booked", "did.2.hotel"));
  orders.given(...happens("trips.3.booked", "did.3.hotel", "did.3.flight", "trips.4.booked", "did.4.hotel"));

  // The flight is gone, there is a train before it, and insurance at the end.
  saga = trip(["hotel", "train", "car", "insurance"], 1, times(1));
  orders.restart().given(...happens("did.1.hotel"));
  assert.equal(place(orders, "1"), "running train");
  orders.given(...happens("trips.2.cancelled"));
  assert.equal(place(orders, "2"), "stuck flight");
  assert.match(instance(orders, "2").reason, /not in this version/);
  // The cancellation is not lost: what was done before is undone.
  orders.given(...happens("trips.2.skip"));
  assert.equal(place(orders, "2"), "compensating hotel");
  // What is behind the furthest step is done; a step that nobody can undo gets stuck.
  orders.given(...happens("did.3.car", "refused.3.insurance", "undid.3.car"));
  assert.equal(place(orders, "3"), "stuck flight");
  orders.given(...happens("trips.3.skip", "undid.3.hotel"));
  assert.equal(place(orders, "3"), "compensated -");

  orders.given(...happens("undid.4.hotel"));
  assert.equal(place(orders, "4"), "stuck flight");

  // The older version again: what it knows continues.
  saga = old;
  orders.restart().given(...happens("did.1.train"));
  assert.equal(instance(orders, "1").status, "running");
  // A stuck instance decides nothing on its own: a failure may be older than the operator's work.
  const { late = 0 } = counts(orders).ignored;
  orders.given(...happens("refused.4.flight"));
  assert.deepEqual([place(orders, "4"), counts(orders).ignored.late], ["stuck flight", late + 1]);
});

test("a newer format is not touched, and fields may be added to this one", () => {
  class Kept extends Orders {
    override migrate(_: number, old: OldEntry, entries: NewEntries): void {
      entries.keep(old);
    }
  }
  const old = runs(trip()).given(...happens("trips.7.booked"));
  const continued = (changes: object) => {
    const entries = { ...old.entries(), "saga/trip/7": { ...instance(old), ...changes } };
    return Harness.migrated(Kept, 1, entries).given(...happens("did.7.hotel"));
  };
  assert.equal(place(continued({ added: 1 })), "running flight");
  assert.throws(() => continued({ format: 2 }), /written in format 2, and this version of the module knows 1/);
});

test("a saga in a handler's manifest, its name and its tables are checked when the module is made", () => {
  class NoTimers extends Orders {
    static override manifest = { ...Orders.manifest, timers: false };
  }
  class Twice extends Orders {
    others = new Sagas(saga);
  }
  class Hidden extends Orders {
    others = this.table("saga", text, u64);
  }
  runs(trip());
  assert.throws(() => new Harness(NoTimers), /saga trip sets timers, which the manifest does not declare/);
  assert.throws(() => new Harness(Twice), /two tables are named "saga\/trip"/);
  assert.throws(() => new Harness(Hidden), /two tables are named "saga"/);
  assert.throws(() => new Sagas(saga), /saga trip: make it where the module makes its tables/);
  for (const [more, message] of [
    [{ name: "Trip" }, /name "Trip" of a saga or step/],
    [{ name: "t".repeat(33) }, /of a saga or step/],
    [{ steps: [step("a", times(1), times(1)), step("a", times(1), times(1))] }, /two steps are named a/],
    [{ steps: Array.from({ length: 33 }, (_, place) => step(`s${place}`, times(1), times(1))) }, /more than 32 steps/],
    [{ steps: [step("a", times(1), times(1), { succeedsOn: [] })] }, /no answer that it is done; add succeedsOn/],
    [{ steps: [{ name: "a" }] }, /no answer that it is done/],
    [{ steps: [step("a", times(0), times(1))] }, /step a: 0 attempts/],
    [{ steps: [step("a", times(1), times(1), { timeoutUs: 0.5 })] }, /timeoutUs: 0.5 is no number of microseconds/],
    [{ keepEndedUs: -1 }, /keepEndedUs: -1 is no number/],
  ] as const) {
    assert.throws(() => tripOf([], more), message);
  }
});

test("instances are found by the key that the saga names", () => {
  const started = (correlateBy: SagaDefinition<Order>["correlateBy"], data: unknown, headers = {}) => {
    class Named extends Orders {
      static override manifest = { ...Orders.manifest, headers: true, publishes: [">"] };
    }
    saga = tripOf([step("hotel", times(1), times(1))], { correlateBy, start: () => ({ size: 1, payment: null }) });
    const orders = new Harness(Named).given(event("trips.7.booked", data, { headers }));
    return Object.keys(orders.entries("saga/"));
  };
  assert.deepEqual(started("subject", {}), ["saga/trip/trips.7.booked"]);
  assert.deepEqual(started({ subjectToken: 1 }, {}), ["saga/trip/trips"]);
  assert.deepEqual(started({ header: "trip" }, {}, { trip: "a" }), ["saga/trip/a"]);
  assert.deepEqual(started({ dataPointer: "/a~1b/1/~0" }, { "a/b": [0, { "~": "x" }] }), ["saga/trip/x"]);
  assert.deepEqual(started({ dataPointer: "/id" }, { id: 42 }), ["saga/trip/42"]);
  assert.deepEqual(started((event) => `k${event.sequence}`, {}), ["saga/trip/k1"]);
  assert.throws(() => started({ header: "trip" }, {}), /has no header trip, so it belongs to no saga/);
  assert.throws(() => started({ subjectToken: 9 }, {}), /has no token 9/);
  for (const [pointer, data] of [["/id", {}], ["/0", "a"], ["id", { id: 1 }], ["/01", [0, 1]]]) {
    assert.throws(() => started({ dataPointer: pointer as string }, JSON.stringify(data)), /has no text or whole number at/);
  }
  assert.throws(() => started({ dataPointer: "/id" }, JSON.stringify({ id: 2 ** 53 })), /is not exact/);
});

test("a timer that another language set is met, whatever its nanoseconds", () => {
  for (let nanoseconds = 0; nanoseconds < 1_000; nanoseconds++) {
    const due = `2026-11-27T19:53:18.123456${String(nanoseconds).padStart(3, "0")}Z`;
    // As the engine passes it.
    const atNs = Number(nanosecondsOf(due)!);
    assert.ok(isDue(due, { atUs: Math.round(atNs / 1_000) }), due);
  }
  const due = "2026-11-27T19:53:18.123456789Z";
  const atUs = Math.round(Number(nanosecondsOf(due)!) / 1_000);
  for (const other of [atUs - 2, atUs + 2, 0]) assert.ok(!isDue(due, { atUs: other }));
  assert.ok(!isDue(undefined, { atUs }));
});

test("a timer that its instance does not wait for changes nothing", () => {
  saga = trip();
  class Restless extends Orders {
    override handle(event: Event, effects: Effects): void {
      // It takes the place of the one that the instance has set.
      if (event.isUnder("x.*.*")) effects.setTimer(`saga/trip/${event.token(2)}`, event.timeUs);
      else super.handle(event, effects);
    }
  }
  const orders = new Harness(Restless).given(...happens("trips.7.booked", "x.7.x", "x.8.x")).after(hours(1));
  assert.equal(place(orders), "running hotel");
  assert.deepEqual(counts(orders).ignored, { "stale-timer": 2 });
  assert.deepEqual(subjects(orders), ["do.7.hotel"]);
});

test("index and counts agree with the instances", () => {
  const orders = runs(trip());
  for (let key = 1; key <= 9; key++) orders.given(...happens(`trips.${key}.booked`));
  orders.given(...happens("did.2.hotel", "did.3.hotel", "refused.4.hotel", "trips.5.cancelled"));
  assert.equal(
    JSON.stringify(counts(orders).now),
    JSON.stringify({ "compensated/-": 1, "compensating/hotel": 1, "running/flight": 2, "running/hotel": 5 }),
  );
  const waiting = Object.keys(orders.entries("saga-index/trip/running/hotel/"));
  // Those that have waited longest come first.
  assert.deepEqual(waiting.map((key) => key.split("/").at(-1)), ["1", "6", "7", "8", "9"]);
});

/** Numbers from a seed. */
class Random {
  #state: bigint;

  constructor(seed: number) {
    this.#state = BigInt(seed);
  }

  below(limit: number): number {
    this.#state = BigInt.asUintN(64, this.#state * 6_364_136_223_846_793_005n + 1_442_695_040_888_963_407n);
    return Number((this.#state >> 33n) % BigInt(limit));
  }

  oneIn(count: number): boolean {
    return this.below(count) === 0;
  }
}

interface Work {
  isRefused?: boolean;
  isDone: boolean;
  isUndone: boolean;
}

/** A participant: does each piece of work once, by its id, and undoes it if asked. */
class Participant {
  readonly works = new Map<string, Work>();

  /** Its answer to a command; none if it is lost. */
  serve(subject: string, id: string, random: Random): string[] {
    const [verb, key, step] = subject.split(".");
    const work = this.works.get(id) ?? { isDone: false, isUndone: false };
    this.works.set(id, work);
    let answer = "busy";
    if (verb === "undo") {
      answer = random.oneIn(4) ? "stays" : "undid";
      if (answer === "undid") work.isUndone = true;
    } else if (work.isRefused !== undefined || !random.oneIn(5)) {
      assert.ok(!work.isUndone, `${id} is asked for after it was undone`);
      work.isRefused ??= random.oneIn(8);
      work.isDone ||= !work.isRefused;
      answer = work.isRefused ? "refused" : "did";
    }
    return random.oneIn(10) ? [] : [`${answer}.${key}.${step}`];
  }
}

/** Runs sagas over a network that loses, repeats and reorders, until nothing is left to do. */
function runOverABadNetwork(seed: number): void {
  const random = new Random(seed);
  const orders = runs(trip(["hotel", "flight", "car"], 3, times(Infinity)));
  const participant = new Participant();
  // Commands arrive in their order; answers in any.
  const answers: string[] = [];
  let served = 0;
  const keys = 5;
  for (let key = 0; key < keys; key++) orders.given(...happens(`trips.${key}.booked`));
  for (let round = 0; ; round++) {
    assert.ok(round < 5_000, `seed ${seed}: it never ends`);
    const published = orders.published();
    const isOpen = Object.keys(counts(orders).now).some((group) => !group.endsWith("/-"));
    if (!isOpen && served === published.length && answers.length === 0) break;
    const choice = random.below(4);
    if (choice < 2 && served < published.length) {
      const { subject, data } = published[served++]!;
      const { id } = data as { id?: string };
      if (id !== undefined) answers.push(...participant.serve(subject, id, random));
    } else if (choice === 2 && answers.length > 0) {
      const batch: string[] = [];
      for (let left = 1 + random.below(3); left > 0 && answers.length > 0; left--) {
        const place = random.below(answers.length);
        batch.push(...(random.oneIn(4) ? [answers[place]!] : answers.splice(place, 1)));
      }
      orders.given(...happens(...batch));
    } else if (choice === 3 && random.oneIn(3)) {
      orders.after(seconds(random.below(90)));
    } else if (choice === 3 && random.oneIn(20)) {
      orders.given(...happens(`trips.${random.below(keys)}.cancelled`));
    } else if (choice === 3 && random.oneIn(10)) {
      orders.restart();
    }
  }
  for (let key = 0; key < keys; key++) assertEndedWell(seed, orders, participant, String(key));
  const attempts = orders.published().flatMap(({ subject, data }) => {
    const { id, attempt } = data as { id?: string; attempt?: number };
    return id === undefined ? [] : [`${subject} ${attempt}`];
  });
  assert.equal(new Set(attempts).size, attempts.length, `seed ${seed}: something was asked twice`);
  orders.assertSameForAnyBatching();
}

function assertEndedWell(seed: number, orders: Harness, participant: Participant, key: string): void {
  const { status } = instance(orders, key);
  const shown = `seed ${seed}: ${key} is ${status}`;
  assert.ok(status === "completed" || status === "compensated", shown);
  const about = (verb: string) => {
    const start = `${verb}.${key}.`;
    const all = subjects(orders).filter((subject) => subject.startsWith(start)).map((subject) => subject.slice(start.length));
    return all.filter((step, place) => step !== all[place - 1]);
  };
  const [done, undone] = [about("do"), about("undo")];
  assert.ok(status === "compensated" || undone.length === 0, shown);
  assert.deepEqual(undone, done.filter((step) => undone.includes(step)).reverse(), shown);
  const ends = subjects(orders).filter((subject) => [`trips.${key}.completed`, `trips.${key}.given-up`].includes(subject));
  assert.equal(ends.length, 1, shown);
  for (const step of ["hotel", "flight", "car"]) {
    const found = [...participant.works].find(([id]) => id.startsWith(`trip/${key}/`) && id.endsWith(`/${step}`));
    const isDone = found !== undefined && found[1].isDone && !found[1].isUndone;
    assert.equal(isDone, status === "completed", `${shown}: ${step}`);
  }
}

test("over a bad network everything is done or undone once", () => {
  for (let seed = 0; seed < 25; seed++) runOverABadNetwork(seed);
});
