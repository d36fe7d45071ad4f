"""Timers: what a handler asks to be called for at a time."""

from __future__ import annotations

from dataclasses import dataclass

from .time import Timestamp


@dataclass(frozen=True)
class Timer:
    """A timer to set, or one that is pending."""

    name: str
    at: Timestamp
    """When it fires."""
    key: str | None = None
    """Its key; none takes that of the event that sets it."""


@dataclass(frozen=True)
class Fired:
    """A timer that fires. It is pending no more."""

    name: str
    """Its name."""
    at: Timestamp
    """The time that it was set to."""
    time: Timestamp
    """When it fired, by the clock of the stream: not before `at`, and later if the host was stopped
    or the stream away."""
    sequence: int
    """The sequence of its firing in the stream, where it has a place like an event."""
    key: str | None = None
    """Its key."""

    def part(self, number: int) -> str:
        """A part of its name between slashes, counted from 1: the second of `payment/42` is `42`.
        Empty if the name has fewer."""
        parts = self.name.split("/")
        return parts[number - 1] if 1 <= number <= len(parts) else ""
