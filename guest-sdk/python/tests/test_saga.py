"""Sagas: whatever comes late, twice or not at all, each instance ends with everything done or everything
undone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from foldstream import (
    Effects,
    Event,
    Fired,
    Handler,
    HandlerManifest,
    KeyRule,
    NewEntries,
    OldEntry,
    Reject,
    Table,
    Timer,
    Timestamp,
)
from foldstream.saga import Compensation, Pattern, RetryPolicy, Saga, SagaMessage, Sagas, Step
from foldstream.saga.sagas import key_of_timer, timer_name
from foldstream.testing import GivenEvent, Harness, Published, event

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


@dataclass
class Order:
    size: int
    payment: str | None = None


def command(verb: str, name: str) -> Any:
    return lambda call: SagaMessage(f"{verb}.{call.key}.{name}", {"id": call.id, "attempt": call.attempt})


def step(name: str, attempts: int | None, undo: int | None, **more: Any) -> Step[Order]:
    """A step with a command `do.<key>.<step>`, undone by `undo.<key>.<step>`."""
    answers: dict[str, Any] = {
        "succeeds_on": f"did.*.{name}",
        "fails_on": f"refused.*.{name}",
        "retries_on": f"busy.*.{name}",
        "timeout": 60 * SECOND,
        "retry": RetryPolicy(attempts),
        "compensation": Compensation(
            command("undo", name),
            succeeds_on=f"undid.*.{name}",
            fails_on=f"stays.*.{name}",
            timeout=60 * SECOND,
            retry=RetryPolicy(undo),
        ),
    }
    return Step(name, command("do", name), **{**answers, **more})


def trip_of(steps: list[Step[Order]], **more: Any) -> Saga[Order]:
    definition: dict[str, Any] = {
        "starts_on": "trips.*.booked",
        "cancels_on": "trips.*.cancelled",
        "resumes_on": "trips.*.resume",
        "skips_on": "trips.*.skip",
        "on_completed": lambda call: SagaMessage(f"trips.{call.key}.completed"),
        "on_compensated": lambda call: SagaMessage(f"trips.{call.key}.given-up", call.reason),
        "on_stuck": lambda call: SagaMessage(f"trips.{call.key}.stuck"),
    }
    name = more.pop("name", "trip")
    return Saga(name, Order, steps=steps, **{**definition, **more})


def trip(*names: str, attempts: int | None = 2, undo: int | None = 2) -> Saga[Order]:
    return trip_of([step(name, attempts, undo) for name in names or ("hotel", "flight", "car")])


MANIFEST: dict[str, Any] = {
    # Newer versions have other steps.
    "subjects": ["*.*.*"],
    "publishes": ["do.*.*", "undo.*.*", "trips.*.*"],
    "timers": True,
    "key": KeyRule.subject_token(2),
}


def handler(saga: Saga[Order], **more: Any) -> type[Handler]:
    class Orders(Handler):
        manifest = HandlerManifest("orders", **{**MANIFEST, **more})
        sagas = Sagas(saga)

        def handle(self, event: Event, effects: Effects) -> None:
            self.sagas.handle(event, effects)

        def on_timer(self, timer: Fired, effects: Effects) -> None:
            self.sagas.on_timer(timer, effects)

    return Orders


def runs(saga: Saga[Order], **more: Any) -> Harness:
    return Harness(handler(saga, **more))


def happens(*subjects: str) -> list[GivenEvent]:
    return [event(subject, {"size": 1}) for subject in subjects]


def subjects(orders: Harness) -> list[str]:
    return [message.subject for message in orders.published()]


def instance(orders: Harness, key: str = "7") -> Any:
    return orders.get(f"saga/trip/{key}")


def place(orders: Harness, key: str = "7") -> str:
    """How far an instance is."""
    found = instance(orders, key)
    return f"{found['status']} {found.get('step', '-')}"


def counts(orders: Harness) -> Any:
    return orders.get("saga-count/trip")


def test_steps_follow_each_other_and_the_saga_completes() -> None:
    orders = runs(trip()).given(*happens("trips.7.booked"))
    assert place(orders) == "running hotel"
    assert len(orders.timers()) == 1
    orders.given(*happens("did.7.hotel", "did.7.flight", "did.7.car"))
    assert subjects(orders) == ["do.7.hotel", "do.7.flight", "do.7.car", "trips.7.completed"]
    assert place(orders) == "completed -"
    orders.assert_same_for_any_batching()
    # It is kept for a day, so that late events are recognised, and then removed.
    orders.given(*happens("did.7.car", "trips.7.booked"))
    assert counts(orders)["ignored"] == {"ended": 2}
    orders.after(25 * HOUR)
    assert orders.entries("saga/") == {}
    assert orders.entries("saga-index/") == {}
    assert (len(orders.timers()), len(subjects(orders))) == (0, 4)
    assert counts(orders) == {"format": 1, "now": {}, "ended": {"completed": 1}, "ignored": {"ended": 2}}


def test_an_instance_is_stored_as_the_documentation_of_sagas_says() -> None:
    orders = runs(trip()).given(*happens("trips.7.booked"))
    time, due = "2026-01-01T00:00:00.000000000Z", "2026-01-01T00:01:00.000000000Z"
    assert orders._memory.entries["saga/trip/7"] == json.dumps(
        {
            "format": 1,
            "status": "running",
            "step": "hotel",
            "since": time,
            "started": time,
            "updated": time,
            "attempt": 1,
            "wait": "answer",
            "due": due,
            "steps": [{"step": "hotel", "fate": "waiting"}],
            "history": [{"at": time, "what": "started by booked"}],
            "data": {"size": 1, "payment": None},
        },
        separators=(",", ":"),
    )
    assert orders.entries("saga-index/") == {f"saga-index/trip/running/hotel/{time}/7": None}
    assert orders.timers() == [Timer("saga/trip/7", Timestamp.parse(due), "7")]
    id = f"trip/7/{int(Timestamp.parse(time))}/hotel"
    assert orders.published() == [Published("do.7.hotel", "hotel", {"id": id, "attempt": 1}, key="7")]


def test_a_refusal_undoes_what_was_done_the_last_step_first() -> None:
    orders = runs(trip()).given(*happens("trips.7.booked", "did.7.hotel", "did.7.flight", "refused.7.car"))
    assert place(orders) == "compensating flight"
    assert instance(orders)["reason"] == "car: car"
    orders.given(*happens("undid.7.flight", "undid.7.hotel"))
    assert subjects(orders)[3:] == ["undo.7.flight", "undo.7.hotel", "trips.7.given-up"]
    orders.assert_same_for_any_batching()


def test_a_step_that_times_out_is_in_doubt_and_is_undone_too() -> None:
    orders = runs(trip()).given(*happens("trips.7.booked")).after(300 * SECOND)
    assert subjects(orders)[:3] == ["do.7.hotel", "do.7.hotel", "undo.7.hotel"]
    # Its answer comes after all, before and after the confirmation.
    orders.given(*happens("did.7.hotel", "undid.7.hotel", "did.7.hotel"))
    assert place(orders) == "compensated -"
    assert instance(orders)["reason"] == "hotel: no answer within 60s"
    assert subjects(orders)[-1] == "trips.7.given-up"
    orders.assert_same_for_any_batching()


def test_an_answer_that_comes_while_the_next_attempt_waits_counts() -> None:
    orders = runs(trip()).given(*happens("trips.7.booked", "busy.7.hotel", "busy.7.hotel"))
    assert instance(orders)["wait"] == "retry"
    assert counts(orders)["ignored"] == {"duplicate": 1}
    orders.given(*happens("did.7.hotel")).after(30 * SECOND)
    assert subjects(orders) == ["do.7.hotel", "do.7.flight"]
    orders.assert_same_for_any_batching()


def test_answers_that_come_twice_early_or_for_nobody_are_named_and_change_nothing() -> None:
    orders = runs(trip()).given(*happens("trips.7.booked", "trips.7.booked", "did.7.hotel", "did.7.hotel"))
    orders.given(*happens("did.7.car", "undid.7.hotel", "refused.7.hotel", "did.8.hotel"))
    ignored = {"duplicate": 2, "early": 2, "late": 1, "unknown": 1}
    assert list(counts(orders)["ignored"].items()) == list(ignored.items())
    assert subjects(orders) == ["do.7.hotel", "do.7.flight"]


def test_a_compensation_that_fails_is_tried_again_and_then_waits_for_an_operator() -> None:
    orders = runs(trip()).given(
        *happens("trips.7.booked", "did.7.hotel", "refused.7.flight", "stays.7.hotel")
    )
    assert place(orders) == "compensating hotel"
    orders.after(5 * SECOND).given(*happens("stays.7.hotel"))
    assert place(orders) == "stuck hotel"
    assert orders.timers() == []
    assert instance(orders)["reason"].startswith("hotel could not be undone")
    orders.given(*happens("trips.7.resume", "undid.7.hotel"))
    assert place(orders) == "compensated -"
    assert instance(orders)["reason"] == "flight: flight"
    undone = ["undo.7.hotel", "undo.7.hotel", "trips.7.stuck", "undo.7.hotel", "trips.7.given-up"]
    assert subjects(orders)[2:] == undone
    orders.assert_same_for_any_batching()


@pytest.mark.parametrize("freed_by", ["trips.7.skip", "undid.7.hotel"])
def test_an_operator_may_skip_and_a_late_confirmation_frees_a_stuck_instance(freed_by: str) -> None:
    orders = runs(trip("hotel", "flight", attempts=1, undo=1))
    orders.given(*happens("trips.7.booked", "did.7.hotel", "refused.7.flight", "stays.7.hotel"))
    assert place(orders) == "stuck hotel"
    orders.given(*happens(freed_by))
    assert place(orders) == "compensated -"


def test_cancelling_undoes_the_current_step_as_well() -> None:
    orders = runs(trip()).given(*happens("trips.7.booked", "did.7.hotel", "trips.7.cancelled"))
    orders.given(*happens("undid.7.flight", "undid.7.hotel", "trips.7.cancelled"))
    assert subjects(orders)[2:4] == ["undo.7.flight", "undo.7.hotel"]
    assert instance(orders)["reason"] == "cancelled: cancelled"
    assert counts(orders)["ignored"] == {"ended": 1}


def test_a_saga_is_not_cancelled_after_its_pivot() -> None:
    orders = runs(trip_of([step("hotel", 1, 1), step("ship", None, 1, pivot=True)]))
    orders.given(*happens("trips.7.booked", "did.7.hotel", "trips.7.cancelled"))
    assert counts(orders)["ignored"] == {"late": 1}
    orders.after(HOUR)
    assert place(orders) == "running ship"
    orders.given(*happens("refused.7.ship", "undid.7.ship", "undid.7.hotel"))
    assert place(orders) == "compensated -"
    orders.assert_same_for_any_batching()


def test_a_step_that_refused_and_was_done_after_all_is_undone_or_shown_to_an_operator() -> None:
    orders = runs(trip()).given(*happens("trips.7.booked", "did.7.hotel", "refused.7.flight", "did.7.flight"))
    orders.given(*happens("undid.7.hotel", "undid.7.flight"))
    assert place(orders) == "compensated -"
    assert "undo.7.flight" in subjects(orders)

    orders.given(*happens("trips.8.booked", "refused.8.hotel", "did.8.hotel"))
    assert place(orders, "8") == "stuck hotel"
    # It has not ended after all.
    assert counts(orders)["ended"] == {"compensated": 1}
    orders.given(*happens("trips.8.resume", "undid.8.hotel"))
    assert place(orders, "8") == "compensated -"
    orders.assert_same_for_any_batching()


def test_a_step_without_a_command_waits_for_an_event_that_may_come_before_its_turn() -> None:
    def take(order: Order, event: Event) -> None:
        (order.payment,) = event.json(list[str])

    paid_step: Step[Order] = Step(
        "paid",
        succeeds_on=Pattern("trips.*.x", "com.example.paid"),
        on_success=take,
        compensation=Compensation(
            lambda call: SagaMessage(f"undo.{call.key}.paid", call.data.payment or "")
        ),
    )
    silent = {"on_completed": None, "on_compensated": None, "on_stuck": None}
    orders = runs(trip_of([step("hotel", 1, 1), paid_step], **silent))

    def paid(key: str) -> GivenEvent:
        return event(f"trips.{key}.x", ["p1"], kind="com.example.paid")

    # In its turn, before its turn, and twice.
    orders.given(*happens("trips.6.booked", "did.6.hotel"), paid("6"))
    orders.given(*happens("trips.7.booked"), paid("7"), paid("7"), *happens("did.7.hotel"))
    for key in ("6", "7"):
        assert (place(orders, key), instance(orders, key)["data"]["payment"]) == ("completed -", "p1")
    assert counts(orders)["ignored"] == {"duplicate": 1}
    # Another type under its subject is not meant.
    orders.given(*happens("trips.6.x"))
    assert counts(orders)["ignored"] == {"duplicate": 1}

    # What came before its turn is undone as well, and so is what comes after the end.
    orders.given(*happens("trips.8.booked"), paid("8"), *happens("refused.8.hotel"))
    assert place(orders, "8") == "compensated -"
    orders.given(*happens("trips.9.booked", "refused.9.hotel"), paid("9"))
    assert place(orders, "9") == "stuck paid"
    orders.given(*happens("trips.9.resume"))
    assert place(orders, "9") == "compensated -"
    undone = [(one.subject, one.data) for one in orders.published() if one.subject.startswith("undo.")]
    assert undone == [("undo.8.paid", "p1"), ("undo.9.paid", "p1")]
    assert counts(orders)["ended"] == {"compensated": 2, "completed": 2}
    orders.assert_same_for_any_batching()


def test_a_step_without_a_command_that_fails_before_its_turn_fails_at_its_turn() -> None:
    weather: Step[Order] = Step("weather", succeeds_on="did.*.weather", fails_on="refused.*.weather")
    orders = runs(trip_of([step("hotel", 1, 1), weather]))
    orders.given(*happens("trips.6.booked", "refused.6.weather", "refused.6.weather"))
    assert place(orders, "6") == "running hotel"
    assert instance(orders, "6")["early_failures"] == [{"step": "weather", "why": "weather"}]
    orders.given(*happens("did.6.hotel", "undid.6.hotel"))
    assert place(orders, "6") == "compensated -"
    assert instance(orders, "6")["reason"] == "weather: weather"
    assert "early_failures" not in instance(orders, "6")
    # A success counts, before the failure and after it.
    for key, first, second in (("7", "did", "refused"), ("8", "refused", "did")):
        weathers = (f"{first}.{key}.weather", f"{second}.{key}.weather")
        orders.given(*happens(f"trips.{key}.booked", *weathers, f"did.{key}.hotel"))
        assert place(orders, key) == "completed -"
    # Another step may fail first.
    orders.given(*happens("trips.9.booked", "refused.9.weather", "refused.9.hotel", "refused.9.weather"))
    assert instance(orders, "9")["reason"] == "hotel: hotel"
    assert counts(orders)["ignored"] == {"duplicate": 1, "late": 1, "ended": 1}
    orders.assert_same_for_any_batching()


def test_hostile_keys_are_kept_apart_and_impossible_ones_are_rejected() -> None:
    orders = runs(trip())
    odd = ["a/b", "%2F", "saga", "\u0085", "ключ", "-", "🦀"]
    for key in odd:
        orders.given(*happens(f"trips.{key}.booked"))
    assert len(orders.entries("saga/trip/")) == len(odd)
    orders.after(600 * SECOND)
    for key in odd:
        orders.given(*happens(f"undid.{key}.hotel"))
    assert counts(orders)["ended"] == {"compensated": len(odd)}
    for key in ("k" * 1_000, "", "/" * 200):
        with pytest.raises(Reject, match=r"correlation key of saga trip has \d+ bytes"):
            orders.given(*happens(f"trips.{key}.booked"))
    orders.assert_same_for_any_batching()


@pytest.mark.parametrize("key", ["7", "a/b", "50%", "%2F", "\u0085\n\t", "ключ", " ", "..", "saga/x/", "🦀"])
def test_any_key_returns_from_the_name_of_its_timer(key: str) -> None:
    name = timer_name("orders", key)
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in name)
    assert key_of_timer("orders", name) == key
    assert key_of_timer("order", name) is None


def test_names_of_timers_are_those_of_other_languages() -> None:
    assert timer_name("orders", "\u0085\n%ë") == "saga/orders/%C2%85%0A%25ë"
    assert key_of_timer("orders", "saga/orders/%FF") is None


def test_instances_of_an_older_definition_continue_or_say_what_is_missing() -> None:
    old = trip("hotel", "flight", "car", attempts=1, undo=1)
    orders = runs(old).given(*happens("trips.1.booked", "trips.2.booked", "did.2.hotel"))
    orders.given(*happens("trips.3.booked", "did.3.hotel", "did.3.flight", "trips.4.booked", "did.4.hotel"))

    # The flight is gone, there is a train before it, and insurance at the end.
    orders._module = handler(trip("hotel", "train", "car", "insurance", attempts=1, undo=1))
    orders.restart().given(*happens("did.1.hotel"))
    assert place(orders, "1") == "running train"
    orders.given(*happens("trips.2.cancelled"))
    assert place(orders, "2") == "stuck flight"
    assert "not in this version" in instance(orders, "2")["reason"]
    # The cancellation is not lost: what was done before is undone.
    orders.given(*happens("trips.2.skip"))
    assert place(orders, "2") == "compensating hotel"
    # What is behind the furthest step is done; a step that nobody can undo gets stuck.
    orders.given(*happens("did.3.car", "refused.3.insurance", "undid.3.car"))
    assert place(orders, "3") == "stuck flight"
    orders.given(*happens("trips.3.skip", "undid.3.hotel"))
    assert place(orders, "3") == "compensated -"

    orders.given(*happens("undid.4.hotel"))
    assert place(orders, "4") == "stuck flight"

    # The older version again: what it knows continues.
    orders._module = handler(old)
    orders.restart().given(*happens("did.1.train"))
    assert instance(orders, "1")["status"] == "running"
    # A stuck instance decides nothing on its own: a failure may be older than the operator's work.
    late = counts(orders)["ignored"].get("late", 0)
    orders.given(*happens("refused.4.flight"))
    assert (place(orders, "4"), counts(orders)["ignored"]["late"]) == ("stuck flight", late + 1)


def test_a_newer_format_is_not_touched_and_fields_may_be_added_to_this_one() -> None:
    class Kept(handler(trip())):  # type: ignore[misc]
        def migrate(self, from_version: int, old: OldEntry, new: NewEntries) -> None:
            new.keep(old)

    old = runs(trip()).given(*happens("trips.7.booked"))

    def continued(**changes: Any) -> Harness:
        entries = {**old.entries(), "saga/trip/7": {**instance(old), **changes}}
        return Harness.migrated(Kept, 1, entries).given(*happens("did.7.hotel"))

    assert place(continued(added=1)) == "running flight"
    with pytest.raises(Reject, match="written in format 2, and this version of the module knows 1"):
        continued(format=2)


def test_a_saga_its_manifest_and_its_tables_are_checked_when_the_module_is_made() -> None:
    with pytest.raises(TypeError, match="sagas sets timers, which the manifest does not declare"):
        runs(trip(), timers=False)

    class Twice(handler(trip())):  # type: ignore[misc]
        others = Sagas(trip())

    class Hidden(handler(trip())):  # type: ignore[misc]
        others = Table[str, int]("saga")

    with pytest.raises(TypeError, match="two tables are named 'saga/trip'"):
        Harness(Twice)
    with pytest.raises(TypeError, match="two tables are named 'saga"):
        Harness(Hidden)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trip_of([], name="Trip"), "name 'Trip' of a saga or step"),
        (lambda: trip_of([], name="t" * 33), "of a saga or step"),
        (lambda: trip("a", "a"), "two steps have one name"),
        (lambda: trip(*(f"s{place}" for place in range(33))), "more than 32 steps"),
        (lambda: step("a", 1, 1, succeeds_on=()), "no answer that it is done; add succeeds_on"),
        (lambda: Step("a"), "no answer that it is done"),
        (lambda: step("a", 0, 1), "0 attempts"),
        (lambda: step("a", 1, 1, timeout=60), "timeout: 60 is no span of time"),
        (lambda: trip_of([], keep_ended=-SECOND), "keep_ended: .* is no span of time"),
        (lambda: trip_of([], correlate_by=KeyRule()), "events need a key"),
    ],
)
def test_mistakes_in_a_definition_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def started(correlate_by: Any, data: Any, headers: dict[str, str] | None = None) -> list[str]:
    saga = trip_of([step("hotel", 1, 1)], correlate_by=correlate_by, start=lambda _: Order(1))
    orders = runs(saga, headers=True, publishes=[">"])
    orders.given(event("trips.7.booked", data, headers=headers))
    return list(orders.entries("saga/"))


def test_instances_are_found_by_the_key_that_the_saga_names() -> None:
    assert started(KeyRule.subject(), {}) == ["saga/trip/trips.7.booked"]
    assert started(KeyRule.subject_token(1), {}) == ["saga/trip/trips"]
    assert started(KeyRule.header("trip"), {}, {"trip": "a"}) == ["saga/trip/a"]
    assert started(KeyRule.data_pointer("/a~1b/1/~0"), {"a/b": [0, {"~": "x"}]}) == ["saga/trip/x"]
    assert started(KeyRule.data_pointer("/id"), {"id": 42}) == ["saga/trip/42"]
    assert started(lambda event: f"k{event.sequence}", {}) == ["saga/trip/k1"]
    with pytest.raises(Reject, match="has no header trip, so it belongs to no saga"):
        started(KeyRule.header("trip"), {})
    with pytest.raises(Reject, match="has no token 9"):
        started(KeyRule.subject_token(9), {})
    for pointer, data in (("/id", {}), ("/id", {"id": True}), ("/0", '"a"'), ("id", {"id": 1}), ("/01", [0, 1])):
        with pytest.raises(Reject, match="has no text or whole number at"):
            started(KeyRule.data_pointer(pointer), data)


def test_a_timer_that_its_instance_does_not_wait_for_changes_nothing() -> None:
    class Restless(handler(trip())):  # type: ignore[misc]
        def handle(self, event: Event, effects: Effects) -> None:
            if event.is_under("x.*.*"):
                # It takes the place of the one that the instance has set.
                effects.set_timer(f"saga/trip/{event.token(2)}", event.time)
            else:
                super().handle(event, effects)

    orders = Harness(Restless).given(*happens("trips.7.booked", "x.7.x", "x.8.x")).after(HOUR)
    assert place(orders) == "running hotel"
    assert counts(orders)["ignored"] == {"stale-timer": 2}
    assert subjects(orders) == ["do.7.hotel"]


def test_index_and_counts_agree_with_the_instances() -> None:
    orders = runs(trip())
    for key in range(1, 10):
        orders.given(*happens(f"trips.{key}.booked"))
    orders.given(*happens("did.2.hotel", "did.3.hotel", "refused.4.hotel", "trips.5.cancelled"))
    now = {"compensated/-": 1, "compensating/hotel": 1, "running/flight": 2, "running/hotel": 5}
    assert list(counts(orders)["now"].items()) == list(now.items())
    waiting = orders.entries("saga-index/trip/running/hotel/")
    # Those that have waited longest come first.
    assert [key.rpartition("/")[2] for key in waiting] == ["1", "6", "7", "8", "9"]


class Random:
    """Numbers from a seed."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def below(self, limit: int) -> int:
        self.state = (self.state * 6_364_136_223_846_793_005 + 1_442_695_040_888_963_407) % 2**64
        return (self.state >> 33) % limit

    def one_in(self, count: int) -> bool:
        return self.below(count) == 0


@dataclass
class Work:
    is_refused: bool | None = None
    is_done: bool = False
    is_undone: bool = False


@dataclass
class Participant:
    """Does each piece of work once, by its id, and undoes it if asked."""

    works: dict[str, Work] = field(default_factory=dict)

    def serve(self, subject: str, id: str, random: Random) -> list[str]:
        """Its answer to a command; none if it is lost."""
        verb, key, step = subject.split(".")
        work = self.works.setdefault(id, Work())
        answer = "busy"
        if verb == "undo":
            answer = "stays" if random.one_in(4) else "undid"
            work.is_undone |= answer == "undid"
        elif work.is_refused is not None or not random.one_in(5):
            assert not work.is_undone, f"{id} is asked for after it was undone"
            if work.is_refused is None:
                work.is_refused = random.one_in(8)
            work.is_done |= not work.is_refused
            answer = "refused" if work.is_refused else "did"
        return [] if random.one_in(10) else [f"{answer}.{key}.{step}"]


@pytest.mark.parametrize("seed", range(15))
def test_over_a_bad_network_everything_is_done_or_undone_once(seed: int) -> None:
    """Runs sagas over a network that loses, repeats and reorders, until nothing is left to do."""
    random, participant = Random(seed), Participant()
    orders = runs(trip(attempts=3, undo=None))
    # Commands arrive in their order; answers in any.
    answers: list[str] = []
    served, keys = 0, 5
    for key in range(keys):
        orders.given(*happens(f"trips.{key}.booked"))
    for _ in range(5_000):
        published = orders.published()
        is_open = any(not group.endswith("/-") for group in counts(orders)["now"])
        if not is_open and served == len(published) and not answers:
            break
        choice = random.below(4)
        if choice < 2 and served < len(published):
            message = published[served]
            served += 1
            if isinstance(message.data, dict):
                answers += participant.serve(message.subject, message.data["id"], random)
        elif choice == 2 and answers:
            batch = []
            for _ in range(1 + random.below(3)):
                if answers:
                    at = random.below(len(answers))
                    batch.append(answers[at] if random.one_in(4) else answers.pop(at))
            orders.given(*happens(*batch))
        elif choice == 3 and random.one_in(3):
            orders.after(random.below(90) * SECOND)
        elif choice == 3 and random.one_in(20):
            orders.given(*happens(f"trips.{random.below(keys)}.cancelled"))
        elif choice == 3 and random.one_in(10):
            orders.restart()
    else:
        pytest.fail("it never ends")
    for key in range(keys):
        assert_ended_well(orders, participant, str(key))
    attempts = [(one.subject, one.data["attempt"]) for one in orders.published() if isinstance(one.data, dict)]
    assert len(set(attempts)) == len(attempts), "something was asked twice"
    orders.assert_same_for_any_batching()


def assert_ended_well(orders: Harness, participant: Participant, key: str) -> None:
    status = instance(orders, key)["status"]
    assert status in ("completed", "compensated")

    def about(verb: str) -> list[str]:
        start = f"{verb}.{key}."
        return list(dict.fromkeys(one.removeprefix(start) for one in subjects(orders) if one.startswith(start)))

    done, undone = about("do"), about("undo")
    assert status == "compensated" or not undone
    assert undone == [step for step in reversed(done) if step in undone]
    ends = [one for one in subjects(orders) if one in (f"trips.{key}.completed", f"trips.{key}.given-up")]
    assert len(ends) == 1
    for step in ("hotel", "flight", "car"):
        works = (work for id, work in participant.works.items() if id.startswith(f"trip/{key}/") and id.endswith(f"/{step}"))
        work = next(works, None)
        is_done = work is not None and work.is_done and not work.is_undone
        assert is_done == (status == "completed"), f"{step} of {key}, which is {status}"
