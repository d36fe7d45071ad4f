"""Finds code that Python prepares and nobody runs: a host waits for no coroutine, and takes nothing
from a generator."""

from __future__ import annotations

import inspect
import sys
import warnings
from typing import Any

_lost: list[str] = []
"""Coroutines that were dropped before they ran, in the words of Python."""


def refuse_waiting(shown: str, name: str, method: Any) -> None:
    """Refuses a method that would only be prepared when it is called. Raises `TypeError`."""
    inner = inspect.unwrap(method)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(f"{shown}.{name} must not be async: nothing here waits for it")
    if inspect.isgeneratorfunction(inner):
        raise TypeError(f"{shown}.{name} must not have `yield`: nothing here takes what it yields, so it never runs")


def begin_call() -> None:
    """Called before methods are: what an event before has dropped is not their fault."""
    _lost.clear()


def refuse_unfinished(shown: str, returned: Any) -> None:
    """Refuses the same of what a method returned, and coroutines that it dropped. Raises `TypeError`."""
    if returned is not None and any(hasattr(returned, name) for name in ("__await__", "__anext__", "__next__")):
        raise TypeError(f"{shown} returned a {type(returned).__name__}, which nothing here runs")
    if _lost:
        told = "; ".join(_lost)
        _lost.clear()
        raise TypeError(f"{told}; nothing here waits for it")


def watch_coroutines() -> None:
    """Notes from now on the coroutines that are dropped before they ran; Python only warns of them."""
    warnings.filterwarnings("error", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _note


def _note(dropped: Any) -> None:
    if isinstance(dropped.exc_value, RuntimeWarning):
        _lost.append(str(dropped.exc_value).partition("\n")[0])
    else:
        sys.__unraisablehook__(dropped)
