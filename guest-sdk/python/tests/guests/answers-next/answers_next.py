"""The next version of the guest `answers`: it stores something else, and migrates the state of version
1, whatever its language."""

from dataclasses import dataclass

from foldstream import (
    Effects,
    Event,
    Fired,
    Handler,
    HandlerManifest,
    KeyRule,
    NewEntries,
    OldEntry,
    Table,
    UnknownVersion,
)


@dataclass
class Seen:
    events: int = 0


class Next(Handler):
    """Counts what it answers."""

    manifest = HandlerManifest(
        "answers",
        ["in.*.*"],
        publishes=["out.>"],
        replies=True,
        timers=True,
        key=KeyRule.subject_token(2),
        state_version=2,
    )
    seen = Table[str, Seen]("seen")

    def handle(self, event: Event, effects: Effects) -> None:
        key = event.token(2)
        self.seen.edit(key).events += 1
        effects.publish(f"out.{key}.next")
        effects.cancel_timer(f"later/{key}")

    def on_timer(self, timer: Fired, effects: Effects) -> None:
        self.seen.edit("timers").events += 1
        effects.publish(f"out.{timer.part(2)}.rang")

    def migrate(self, from_version: int, old: OldEntry, new: NewEntries) -> None:
        if from_version != 1:
            raise UnknownVersion(from_version)
        found = old.of_table("handled", str, int)
        if found is None:
            new.keep(old)
        else:
            new.set(self.seen, found[0], Seen(found[1]))
