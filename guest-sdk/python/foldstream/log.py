"""Messages for people, kept in the host's log under the deployment's name.

The host keeps at most 4,096 bytes of a message. In tests they go to standard error, as does what a
module prints.
"""

from __future__ import annotations

import re
import sys
import traceback as _traceback

from .errors import whole


def debug(message: str) -> None:
    """Details for finding an error."""
    _write("debug", message)


def info(message: str) -> None:
    """Normal events worth knowing."""
    _write("info", message)


def warn(message: str) -> None:
    """Something that a person should check."""
    _write("warn", message)


def error(message: str) -> None:
    """What went wrong."""
    _write("error", message)


def traceback(cause: BaseException) -> None:
    """Where an exception came from, in the module's own terms."""
    # In a component the folders of a project have numbers.
    error(re.sub(r'File "/\d+/', 'File "', "".join(_traceback.format_exception(cause)).rstrip()))


def _write(level: str, message: str) -> None:
    sink(level, whole(str(message)))


def _print(level: str, message: str) -> None:
    print(f"{level}: {message}", file=sys.stderr)


sink = _print
"""Where messages go; the component sets it to the host's log."""
