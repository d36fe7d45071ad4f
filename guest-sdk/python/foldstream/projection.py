"""The class that a projection extends."""

from __future__ import annotations

from .events import Event, on
from .module import Module, query

__all__ = ["Projection", "on", "query"]


class Projection(Module):
    """Folds events into a read model::

        class Visits(Projection):
            \"\"\"Counts visits per page.\"\"\"

            manifest = Manifest("visits", ["visits.*"])
            pages = Table[str, int]("page")

            @on("visited")
            def visited(self, event: Event) -> None:
                page = event.token(2)
                self.pages[page] = self.pages.get(page, 0) + 1

            @query
            def visits(self, page: str) -> int:
                \"\"\"How often a page was visited, by its name: "home".\"\"\"
                return self.pages.get(page, 0)

    The result may depend on the events only: not on batch boundaries, restarts, the clock or
    randomness. So keep everything in tables and nothing in other attributes; the host may replace
    an instance between any two batches.

    An exception rejects the event, whatever its class; `Retry` asks the host to try again. What
    the event wrote is dropped; the events before it are kept.
    """

    def apply(self, event: Event) -> None:
        """Applies one event. By default it calls the method that handles the event's type, as `on`
        says; override it to handle events in another way."""
        handler = self.__foldstream__.handlers.get(event.kind)
        if handler is not None:
            return handler(self, event)

    __foldstream_method__ = "apply"
    __foldstream_default__ = apply
    __foldstream_effects__ = 0
