"""What a handler publishes and sets, and what becomes of it when an event or a timer fails."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from foldstream import (
    Effects,
    Event,
    Fired,
    Handler,
    HandlerManifest,
    Manifest,
    Reject,
    Retry,
    Table,
    Timer,
    Timestamp,
    log,
    on,
    query,
)
from foldstream.effects import Cancelled, Message
from foldstream.errors import Mismatch, summary
from foldstream.instance import Instance
from foldstream.testing import GivenEvent, Harness, Memory, Published, event
from foldstream.waiting import watch_coroutines

START = Timestamp.parse("2026-01-01T00:00:00Z")
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


class Asked(Handler):
    """Calls what an event asks for."""

    manifest = HandlerManifest("asked", ["in.*.*"], publishes=["out.>"], replies=True, timers=True)
    counts = Table[str, int]("count")

    asked: dict[str, Any] = {}
    """What the types of events ask for; it is given by each test."""

    def handle(self, event: Event, effects: Effects) -> None:
        key = event.token(2)
        self.counts[key] = self.counts.get(key, 0) + 1
        for call in self.asked[event.kind]:
            call(event, effects)

    def on_timer(self, timer: Fired, effects: Effects) -> None:
        shown = [timer.name, timer.part(2), str(timer.at), str(timer.time), timer.sequence, timer.key]
        effects.publish("out.fired", shown)
        if timer.name == "again":
            effects.set_timer("again", timer.time + 10 * MINUTE)
        if timer.name.startswith("bad"):
            raise Reject("a bad timer")

    @query
    def count(self, key: str) -> int:
        """How many events of a key."""
        return self.counts.get(key, 0)


def publishes(*arguments: Any, **more: Any) -> Any:
    return lambda event, effects: effects.publish(*arguments, **more)


def sets(name: str, at: Any = None, **more: Any) -> Any:
    return lambda event, effects: effects.set_timer(name, at or event.time + 10 * MINUTE, **more)


def cancels(name: Any) -> Any:
    return lambda event, effects: effects.cancel_timer(name)


def raises(error: Exception) -> Any:
    def call(event: Event, effects: Effects) -> None:
        raise error

    return call


def asking(*calls: Any) -> list[GivenEvent]:
    """Events of which each asks for some calls."""
    first = len(Asked.asked)
    for number, some in enumerate(calls, first):
        Asked.asked[f"ask-{number}"] = some if isinstance(some, list) else [some]
    return [event(f"in.a.ask-{number}") for number in range(first, first + len(calls))]


def test_messages_have_what_they_are_given() -> None:
    asked = Harness(Asked).given(
        *asking(
            publishes("out.a.done"),
            publishes("out.a.done", {"z": 1, "a": [None, "ë"]}, kind="other", headers={"x-a": "1"}, key="k"),
            publishes("out.a.done", "plain", not_before=START, time_to_live=MINUTE, expected_last=0),
            publishes("out.a.done", None, expected_last=("out.a.>", 7)),
            publishes("out.a.done", b"\xff"),
        )
    )
    to = ("out.a.done", "done")
    assert asked.published() == [
        Published(*to, ""),
        Published("out.a.done", "other", {"z": 1, "a": [None, "ë"]}, {"x-a": "1"}, "k"),
        Published(*to, "plain", {}, None, START, MINUTE, ("out.a.done", 0)),
        Published(*to, None, expected_last=("out.a.>", 7)),
        Published(*to, b"\xff"),
    ]
    assert asked.query("count", "a") == 5
    asked.assert_same_for_any_batching()


@pytest.mark.parametrize("error", [Reject("no"), Retry("not yet"), KeyError("bug")])
def test_a_failing_event_publishes_and_sets_nothing_and_those_before_it_do(error: Exception) -> None:
    asked = Harness(Asked)
    before = [publishes("out.before"), sets("kept")]
    after = [publishes("out.lost"), sets("lost"), cancels("kept"), raises(error)]
    with pytest.raises(type(error)):
        asked.given(*asking(before, after))
    assert [message.subject for message in asked.published()] == ["out.before"]
    assert [timer.name for timer in asked.timers()] == ["kept"]
    assert asked.query("count", "a") == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (publishes(5), "the subject of a message: expected"),
        (publishes("out.a", kind=1), "a message to out.a: kind: "),
        (publishes("out.a", headers={"a": 1}), "a message to out.a: headers: a: "),
        (publishes("out.a", key=[]), "a message to out.a: key: "),
        (publishes("out.a", {"total": float("nan")}), "a message to out.a: data: "),
        (publishes("out.a", "\ud800"), "a message to out.a: data: "),
        (publishes("out.a", not_before=5), "a message to out.a: not_before: expected a Timestamp, found 5"),
        (publishes("out.a", time_to_live=5), "time_to_live: expected a timedelta, found 5"),
        (publishes("out.a", time_to_live=timedelta(milliseconds=999)), "time_to_live: expected at least 1 s"),
        (publishes("out.a", time_to_live=timedelta(days=100_000)), "a message to out.a: time_to_live: "),
        (publishes("out.a", expected_last=-1), "a message to out.a: expected_last: "),
        (publishes("out.a", expected_last=("out.>",)), "a message to out.a: expected_last: "),
        (sets("a", at=1), "timer a: expected a Timestamp, found 1"),
        (cancels(None), "the name of a timer: expected"),
    ],
)
def test_values_that_no_message_can_have_reject_the_event_by_name(call: Any, message: str) -> None:
    with pytest.raises(Mismatch) as caught:
        Harness(Asked).given(*asking(call))
    assert message in str(caught.value)


def test_what_the_manifest_does_not_declare_is_refused() -> None:
    class Silent(Asked):
        manifest = HandlerManifest("silent", ["in.*.*"])

    with pytest.raises(ValueError, match="out.a, which its manifest does not declare"):
        Harness(Silent).given(*asking(publishes("out.a")))
    with pytest.raises(ValueError, match="it sets timers, which its manifest"):
        Harness(Silent).given(*asking(sets("a")))
    with pytest.raises(ValueError, match="expects the last sequence of out.b, which does not cover it"):
        Harness(Asked).given(*asking(publishes("out.a", expected_last=("out.b", 0))))


def test_replies_go_to_the_inbox_that_the_event_names_and_nowhere_else() -> None:
    def request(inbox: str | None) -> GivenEvent:
        [one] = asking(lambda event, effects: effects.reply(event, {"ok": True}))
        return event(one.subject, headers={} if inbox is None else {"foldstream-reply-to": inbox})

    asked = Harness(Asked).given(request("_INBOX.abc.1"), request(None))
    assert asked.published() == [Published("_INBOX.abc.1", "reply", {"ok": True})]
    strange = ["", "_INBOX", "_INBOX.", "_INBOX.a..b", "_INBOX.*", "_INBOX.>", "_INBOX.a b", "_INBOX.ä", "out.1"]
    asked.given(*map(request, strange), request(f"_INBOX.{'a' * 300}"), request("_INBOX.a\n"))
    assert len(asked.published()) == 1
    asked.given(request("_INBOX.+,-/=?~!()"))
    assert len(asked.published()) == 2


def test_timers_are_set_replaced_and_cancelled_and_fire_in_the_order_of_their_times() -> None:
    asked = Harness(Asked).given(
        *asking(
            sets("a/1"),
            sets("b/2", START + HOUR, key="k"),
            sets("c/3"),
            sets("a/1", START + 2 * HOUR),
            cancels("c/3"),
            cancels("nothing"),
        )
    )
    assert asked.timers() == [Timer("b/2", START + HOUR, "k"), Timer("a/1", START + 2 * HOUR)]
    assert asked.after(30 * MINUTE).published() == []
    asked.after(3 * HOUR)
    at = "2026-01-01T0{}:00:00.000000000Z".format
    assert [message.data for message in asked.published()] == [
        ["b/2", "2", at(1), at(1), 7, "k"],
        ["a/1", "1", at(2), at(2), 8, None],
    ]
    assert asked.timers() == []
    asked.assert_same_for_any_batching()


def test_a_timer_may_be_set_again_when_it_fires() -> None:
    asked = Harness(Asked).given(*asking(sets("again"))).after(35 * MINUTE)
    assert len(asked.published()) == 3
    assert asked.timers() == [Timer("again", START + 40 * MINUTE)]
    asked.given(*asking(cancels("again"))).after(HOUR)
    assert len(asked.published()) == 3
    asked.assert_same_for_any_batching()


def test_a_timer_that_fails_stays_pending_and_does_nothing() -> None:
    asked = Harness(Asked).given(*asking(sets("bad"), sets("good", START + timedelta(seconds=5))))
    with pytest.raises(Reject, match="a bad timer"):
        asked.after(HOUR)
    assert [timer.name for timer in asked.timers()] == ["bad"]
    assert [message.data[0] for message in asked.published()] == ["good"]


@dataclass
class Placed:
    total: int


def test_events_are_handled_by_their_types() -> None:
    class Typed(Handler):
        manifest = HandlerManifest("typed", ["a.*"], publishes=["b"])

        @on("placed")
        def placed(self, event: Event, order: Placed, effects: Effects) -> None:
            effects.publish("b", order)

        @on("paid")
        def paid(self, event: Event, effects: Effects) -> None:
            effects.publish("b", "paid")

    typed = Harness(Typed).given(event("a.placed", {"total": 5}), event("a.paid"), event("a.other"))
    assert [message.data for message in typed.published()] == [{"total": 5}, "paid"]
    with pytest.raises(Mismatch, match=r"event 4 \(a.placed\): missing field `total`"):
        typed.given(event("a.placed"))


def test_mistakes_in_handlers_are_named() -> None:
    class NoEffects(Handler):
        manifest = HandlerManifest("a", ["a"])

        @on("a")
        def a(self, event: Event) -> None: ...

    class NoEvents(Handler):
        manifest = HandlerManifest("a", ["a"])

    class Plain(Handler):
        manifest = Manifest("a", ["a"])  # type: ignore[assignment]

        def handle(self, event: Event, effects: Effects) -> None: ...

    class NoTimers(Handler):
        manifest = HandlerManifest("a", ["a"], timers=True)

        def handle(self, event: Event, effects: Effects) -> None:
            effects.set_timer("a", event.time)

    class Hidden(Handler):
        manifest = HandlerManifest("a", ["a"], publishes=["b"])
        seen = 0

        def handle(self, event: Event, effects: Effects) -> None:
            self.seen += 1
            effects.publish("b", self.seen)

    for handler, message in [
        (NoEffects, r"NoEffects.a takes the event: \(self, event: Event, effects: Effects\)"),
        (NoEvents, "or override handle"),
        (Plain, r'lacks its manifest: manifest = HandlerManifest\("name"'),
    ]:
        with pytest.raises(TypeError, match=message):
            Harness(handler)
    with pytest.raises(TypeError, match="publishes is a list"):
        HandlerManifest("a", ["a"], publishes="b.>")
    with pytest.raises(Reject, match="timer a fired, and this handler has no on_timer"):
        Harness(NoTimers).given(event("a")).after(MINUTE)
    hidden = Harness(Hidden).given(event("a"), event("a"))
    with pytest.raises(AssertionError, match="depends on the batches: message 1 is "):
        hidden.assert_same_for_any_batching()


class Waits(Handler):
    manifest = HandlerManifest("waits", ["a"], timers=True)

    def handle(self, event: Event, effects: Effects) -> None: ...


def test_methods_that_python_would_only_prepare_are_refused_when_they_are_declared() -> None:
    class Handles(Waits):
        async def handle(self, event: Event, effects: Effects) -> None: ...

    class Types(Waits):
        @on("a")
        async def a(self, event: Event, effects: Effects) -> None: ...

    class Yields(Waits):
        @on("a")
        def a(self, event: Event, effects: Effects) -> Any:
            yield effects.publish("out")

    class Streams(Waits):
        @on("a")
        async def a(self, event: Event, data: int, effects: Effects) -> Any:
            yield data

    class Fires(Waits):
        async def on_timer(self, timer: Fired, effects: Effects) -> None: ...

    class Answers(Waits):
        @query
        async def answer(self) -> int:
            return 1

    class Pages(Waits):
        @query
        def pages(self, key: str) -> Any:
            yield 1

    for handler, message in [
        (Handles, "Handles.handle must not be async"),
        (Types, "Types.a must not be async"),
        (Yields, "Yields.a must not have `yield`"),
        (Streams, "Streams.a must not be async"),
        (Fires, "Fires.on_timer must not be async"),
        (Answers, "Answers.answer must not be async"),
        (Pages, "Pages.pages must not have `yield`"),
    ]:
        with pytest.raises(TypeError, match=message):
            Harness(handler)


def test_what_a_method_returned_to_be_run_later_is_refused() -> None:
    def later() -> Any:
        yield 1

    class Returns(Waits):
        def handle(self, event: Event, effects: Effects) -> Any:
            return later()

        def on_timer(self, timer: Fired, effects: Effects) -> Any:
            return later()

        @query
        def answer(self) -> Any:
            """Nothing."""
            return later()

    class Typed(Waits):
        handle = Handler.handle

        @on("a")
        def a(self, event: Event, data: Any, effects: Effects) -> Any:
            return later()

    for handler in (Returns, Typed):
        with pytest.raises(TypeError, match="returned a generator, which nothing here runs"):
            Harness(handler).given(event("a"))
    with pytest.raises(TypeError, match="query answer returned a generator"):
        Harness(Returns).query("answer")
    failed = Instance(Returns, Memory(Returns.manifest)).fire([Fired("a", START, START, 1, None)])
    assert failed is not None and "returned a generator" in failed.message


def test_a_coroutine_that_is_dropped_rejects_its_event(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drops(Waits):
        async def later(self) -> None: ...

        def handle(self, event: Event, effects: Effects) -> None:
            if event.kind in ("drops", "fails"):
                self.later()
            if event.kind == "fails":
                raise Reject("on its own")

        @query
        def answer(self) -> int:
            """One."""
            self.later()
            return 1

    monkeypatch.setattr(sys, "unraisablehook", None)
    with warnings.catch_warnings():
        # As a component does.
        watch_coroutines()
        drops = Harness(Drops).given(event("a"))
        with pytest.raises(TypeError, match="Drops.later' was never awaited; nothing here waits for it"):
            drops.given(event("a", kind="drops"))
        with pytest.raises(Reject, match="on its own"):
            drops.given(event("a"), event("a", kind="fails"))
        with pytest.raises(TypeError, match="was never awaited"):
            drops.query("answer")


def test_messages_for_people_have_no_half_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(log, "sink", lambda level, message: written.append(message))
    log.info("cut \ud83d, whole \U0001f600")
    log.traceback(Reject("cut \ud83d"))
    error = Reject("bad name \ud83d")
    error.__cause__ = ValueError("\udfff")
    summaries = [summary(error), summary(Retry("whole ë"))]
    assert written[0] == "cut \ufffd, whole \U0001f600"
    assert summaries == ["bad name \ufffd: ValueError: \ufffd", "whole ë"]
    for text in written + summaries:
        assert text.encode()


def test_effects_reach_the_outbox_with_the_index_of_their_cause_after_their_event() -> None:
    calls: list[tuple[int, str, int]] = []

    class Outbox:
        def publish(self, cause: int, messages: Sequence[Message]) -> None:
            calls.append((cause, "messages", len(messages)))

        def change_timers(self, cause: int, changes: Sequence[Timer | Cancelled]) -> None:
            calls.append((cause, "timers", len(changes)))

    both = [publishes("out.a"), sets("a"), publishes("out.b")]
    given = asking([], both, [publishes("out.c"), raises(Retry("not yet"))])
    events = [
        Event(number, 1, one.subject, one.subject.rpartition(".")[2], {}, "{}")
        for number, one in enumerate(given, 1)
    ]
    failed = Instance(Asked, Memory(Asked.manifest), Outbox()).apply(events)
    assert failed is not None and (failed.index, failed.retry) == (2, True)
    assert calls == [(1, "messages", 2), (1, "timers", 1)]


@pytest.mark.parametrize(
    "use",
    [
        lambda kept: kept.publish("out.a"),
        lambda kept: kept.set_timer("a", START),
        lambda kept: kept.cancel_timer("a"),
    ],
)
def test_effects_of_an_earlier_event_reject_the_one_that_uses_them(use: Any) -> None:
    kept: list[Effects] = []
    keeps, uses = asking(lambda event, effects: kept.append(effects), lambda event, effects: use(kept[0]))
    asked = Harness(Asked).given(keeps)
    with pytest.raises(Mismatch, match="an earlier event"):
        asked.given(uses)
