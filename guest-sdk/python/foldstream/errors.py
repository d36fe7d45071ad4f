"""Exceptions by which a module says what went wrong, and what may help."""

from __future__ import annotations

import re


class Reject(Exception):
    """The event can never be applied. The deployment stops at it and shows the message."""


class Retry(Exception):
    """The event may be applied later. The host tries again, as often as the manifest says."""


class NotFound(Exception):
    """The state has nothing for the arguments of a query."""


class InvalidArguments(Exception):
    """The arguments of a query do not fit it. The message says how."""


class Mismatch(ValueError):
    """JSON does not match its type. The message says where and how."""

    def within(self, place: str) -> Mismatch:
        """The same, inside of a field or an element."""
        return Mismatch(f"{place}: {self}")


def summary(error: BaseException) -> str:
    """One line about an exception: what it says, with its causes and the line of the module.

    `Reject`, `Retry` and a query's own exceptions were raised on purpose, so they are shown by
    their messages only. It is a text that a host takes.
    """
    if isinstance(error, (Reject, Retry, NotFound, InvalidArguments, Mismatch)):
        message = _text(error) or type(error).__name__
    else:
        text = _text(error)
        message = type(error).__name__ + (f": {text}" if text else "") + _place(error)
    if isinstance(error, BaseExceptionGroup):
        message += ": " + "; ".join([summary(one) for one in error.exceptions[:_MEMBERS_MAX]])
    cause = error.__cause__
    return whole(message if cause is None else f"{message}: {summary(cause)}")


_MEMBERS_MAX = 4
"""Most exceptions of a group that are shown; the log has them all."""


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as other:
        # That is its mistake, and not what went wrong.
        return f"its message cannot be shown ({type(other).__name__})"


def whole(text: str) -> str:
    """A text with U+FFFD for half of a pair of surrogates, which is no text, and would end the call."""
    return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def is_deliberate(error: BaseException) -> bool:
    """Whether an exception is an answer, and needs no traceback."""
    return isinstance(error, (Reject, Retry, NotFound, InvalidArguments, Mismatch))


def _place(error: BaseException) -> str:
    frame = error.__traceback__
    found = None
    while frame is not None:
        code = frame.tb_frame.f_code
        # The innermost line of the module itself helps more than one of this library.
        if not code.co_filename.startswith(_LIBRARY) and not code.co_filename.startswith("<"):
            found = f" ({code.co_filename.rpartition('/')[2]}, line {frame.tb_lineno}, in {code.co_name})"
        frame = frame.tb_next
    return found or ""


_LIBRARY = __file__.rpartition("/")[0] + "/"
