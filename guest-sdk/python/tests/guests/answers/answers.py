"""The guest `answers` of `tests/guests` in Python: it must publish, set and store the same."""

from dataclasses import dataclass
from datetime import timedelta

from foldstream import (
    Effects,
    Event,
    Fired,
    Handler,
    HandlerManifest,
    Inbox,
    KeyRule,
    NotFound,
    Reject,
    Retry,
    Table,
    Timestamp,
    log,
    query,
)

TOMORROW = timedelta(days=1)


@dataclass
class Rang:
    name: str
    part: str
    key: str | None
    is_due: bool


class Answers(Handler):
    """Answers each event as its subject asks"""

    manifest = HandlerManifest(
        "answers",
        ["in.*.*"],
        publishes=["out.>"],
        replies=True,
        timers=True,
        key=KeyRule.subject_token(2),
        attempts=2,
        backoff=(timedelta(milliseconds=10), timedelta(milliseconds=20)),
        inbox=Inbox(timedelta(hours=1), ids_max=1_000),
    )

    # How many events of a key it has handled, and timers.
    handled = Table[str, int]("handled")

    def handle(self, event: Event, effects: Effects) -> None:
        key = event.token(2)
        self.count(key)
        of = event.sequence

        def answer(number: int, said: str, **more: object) -> None:
            data = {"of": of, "number": number, "text": said}
            headers = {"x-number": str(number)}
            effects.publish(f"out.{key}.{of}", data, kind="answer", headers=headers, **more)  # type: ignore

        match event.token(3):
            case "three":
                for number in range(3):
                    answer(number, '\u0000ë🦀"\\/')
            case "plain":
                effects.publish(f"out.{key}.plain")
            case "text":
                effects.publish(f"out.{key}.text", "no JSON")
            case "bytes":
                effects.publish(f"out.{key}.bytes", bytes([0, 255, 128]))
            case "keyed":
                answer(0, "", key="another/ë")
            case "later":
                answer(0, "later", not_before=event.time + TOMORROW)
            case "past":
                answer(0, "past", not_before=Timestamp(1_000))
            case "brief":
                answer(0, "brief", time_to_live=timedelta(hours=1))
            case "first":
                effects.publish(f"out.{key}.first", expected_last=0)
            case "alone":
                effects.publish(f"out.{key}.alone", expected_last=(f"out.{key}.>", 0))
            case "elsewhere":
                effects.publish("elsewhere")
            case "timer":
                effects.set_timer(f"now/{key}", Timestamp(0))
                effects.set_timer(f"later/{key}", event.time + TOMORROW)
            case "keyed-timer":
                effects.set_timer(f"keyed/{key}", event.time, key="another/ë")
            case "replace":
                effects.set_timer(f"replaced/{key}", event.time + TOMORROW)
                effects.cancel_timer(f"replaced/{key}")
                effects.set_timer(f"replaced/{key}", event.time + TOMORROW, key="last")
            case "cancel":
                effects.cancel_timer(f"later/{key}")
            case "reply":
                effects.reply(event, of)
            case "fail":
                answer(0, "lost")
                effects.cancel_timer(f"later/{key}")
                raise Reject("it was asked to fail")
            case "half":
                # Half of a character is in the log and in the failure.
                log.info("half a\ud83e")
                raise Reject("a half: a\ud83e")
            case "retry":
                raise Retry("not yet")

    def on_timer(self, timer: Fired, effects: Effects) -> None:
        self.count("timers")
        part = timer.part(2)
        effects.publish(f"out.{part}.rang", Rang(timer.name, part, timer.key, timer.time >= timer.at))

    @query("handled")
    def how_many(self, key: str) -> int:
        """How many events of a key it has handled"""
        count = self.handled.get(key)
        if count is None:
            raise NotFound
        return count

    def count(self, key: str) -> None:
        self.handled[key] = self.handled.get(key, 0) + 1
