"""The class that a handler extends."""

from __future__ import annotations

from typing import ClassVar

from .effects import Effects
from .errors import Reject
from .events import Event
from .manifest import HandlerManifest
from .module import Module
from .timers import Fired


class Handler(Module):
    """Folds events into tables, as a projection does, and publishes messages::

        class Shipping(Handler):
            \"\"\"Asks shipping to send each order that is paid.\"\"\"

            manifest = HandlerManifest("shipping", ["orders.*.*"], publishes=["shipping.*.send"])

            @on("paid")
            def paid(self, event: Event, effects: Effects) -> None:
                order = event.token(2)
                effects.publish(f"shipping.{order}.send", {"order": order})

    What it writes and publishes may depend on the events only: not on batch boundaries, restarts,
    the clock or randomness. The host then sends each message once, whatever happens in between.

    An exception rejects the event, whatever its class; `Retry` asks the host to try again. What
    the event wrote and published is dropped; the events before it are kept.
    """

    def handle(self, event: Event, effects: Effects) -> None:
        """Handles one event. By default it calls the method that handles the event's type, as `on`
        says; override it to handle events in another way."""
        handler = self.__foldstream__.handlers.get(event.kind)
        if handler is not None:
            return handler(self, event, effects)

    def on_timer(self, timer: Fired, effects: Effects) -> None:
        """Handles a timer that fires, set with `effects.set_timer`.

        Firings have a place among the events, so the same rules apply: the result may depend on
        what was handled before, and on the timer, and on nothing else.
        """
        raise Reject(f"timer {timer.name} fired, and this handler has no on_timer")

    manifest: ClassVar[HandlerManifest]

    __foldstream_manifest__ = HandlerManifest
    __foldstream_method__ = "handle"
    __foldstream_default__ = handle
    __foldstream_effects__ = 1
