"""Keys of tables: readable text that sorts like the values that it encodes.

A table's name and the parts of its key are joined by slashes, as in ``day/42/2026-11-23``. Every
SDK of Foldstream writes the same text for the same key:

====================  ========================================================  ==================
Python                text                                                      order
====================  ========================================================  ==================
u8 u16 u32 u64        3, 5, 10, 20 digits                                       by number
i8 i16 i32 i64        ``p`` and the digits; below zero ``n`` and the distance   by number
                      from the smallest
bool                  ``0``, ``1``                                              ``False`` first
date                  ``2026-11-23``                                            by time
Timestamp             ``2026-11-23T14:05:06.123456789Z``                        by time
str                   itself, with ``%``, ``/`` and control characters as       by its bytes in
                      ``%25``, ``%2F``, ``%0A``                                 this form
tuples of 2 to 4      the parts                                                 by the first part,
                                                                                then the second ...
====================  ========================================================  ==================

Python's ``int`` has no width, so a key says which it has: ``Table[tuple[u64, str], None]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, get_args, get_origin

from .time import Timestamp, parse_date

KEY_BYTES_MAX = 1_024
"""Longest key that a host accepts, in bytes."""


@dataclass(frozen=True)
class Width:
    """How many digits an integer has in a key, and which numbers fit."""

    name: str
    low: int
    high: int
    digits: int


u8 = Annotated[int, Width("u8", 0, 2**8 - 1, 3)]
u16 = Annotated[int, Width("u16", 0, 2**16 - 1, 5)]
u32 = Annotated[int, Width("u32", 0, 2**32 - 1, 10)]
u64 = Annotated[int, Width("u64", 0, 2**64 - 1, 20)]
i8 = Annotated[int, Width("i8", -(2**7), 2**7 - 1, 3)]
i16 = Annotated[int, Width("i16", -(2**15), 2**15 - 1, 5)]
i32 = Annotated[int, Width("i32", -(2**31), 2**31 - 1, 10)]
i64 = Annotated[int, Width("i64", -(2**63), 2**63 - 1, 19)]


@dataclass(frozen=True)
class KeyType:
    """How keys of one type are written and read."""

    write: Callable[[Any], str]
    """The parts of a key, each after a slash. Raises `TypeError` or `ValueError`."""
    read: Callable[[str], Any]
    """The key back, from the text behind the table's name. Raises `ValueError`."""
    parts: tuple[KeyType, ...]
    """The key types of its parts; of a key that is no tuple, itself."""
    exact: bool
    """Whether keys that are equal in Python have the same text; not so of 1, 1.0 and True."""


def key_type(declared: Any) -> KeyType:
    """The key type of a Python type. Raises `TypeError` if it cannot be a key."""
    if get_origin(declared) is tuple:
        arguments = get_args(declared)
        if not 2 <= len(arguments) <= 4 or Ellipsis in arguments:
            raise TypeError("a key of several parts is a tuple of 2 to 4, such as tuple[str, date]")
        return tuple_type(tuple(_part(argument) for argument in arguments))
    return _part(declared)


def tuple_type(parts: tuple[KeyType, ...]) -> KeyType:
    """The key type of a tuple; of one part, that part alone."""
    if len(parts) == 1:
        return parts[0]
    count = len(parts)
    writers = tuple(part.write for part in parts)
    readers = tuple(part.read for part in parts)

    def write(key: Any) -> str:
        if type(key) is not tuple or len(key) != count:
            raise TypeError(f"expected a tuple of {count} as the key, found {key!r}")
        if count == 2:
            return writers[0](key[0]) + writers[1](key[1])
        return "".join([write(part) for write, part in zip(writers, key)])

    def read(text: str) -> Any:
        pieces = text.split("/")
        if len(pieces) != count + 1 or pieces[0]:
            raise ValueError(f"expected {count} parts in the key")
        return tuple(read("/" + piece) for read, piece in zip(readers, pieces[1:]))

    return KeyType(write, read, parts, all(part.exact for part in parts))


def _part(declared: Any) -> KeyType:
    if get_origin(declared) is Annotated:
        widths = [note for note in get_args(declared)[1:] if isinstance(note, Width)]
        if widths:
            return _integer(widths[0])
    for kind, write, read in _PLAIN:
        if declared is kind:
            return _single(write, read, kind is str or kind is date)
    if declared is int:
        raise TypeError("an int in a key needs a width: use u64, i64 or another of foldstream.keys")
    raise TypeError(f"{declared!r} cannot be a key; use str, u64, i64, bool, date, Timestamp or a tuple")


def _single(write: Callable[[Any], str], read: Callable[[str], Any], exact: bool = False) -> KeyType:
    def read_one(text: str) -> Any:
        if not text.startswith("/") or "/" in text[1:]:
            raise ValueError("expected one part in the key")
        return read(text[1:])

    made = KeyType(write, read_one, (), exact)
    object.__setattr__(made, "parts", (made,))
    return made


_ESCAPED = re.compile(r"[\x00-\x1f/%\x7f]")


def _write_text(part: Any) -> str:
    if not isinstance(part, str):
        raise TypeError(f"expected a str as the key, found {part!r}")
    if part.isascii():
        # Nearly all keys need no escaping, and this runs for each event.
        if part.isalnum():
            return f"/{part}"
    else:
        # A lone surrogate is no text: `UnicodeEncodeError` is a `ValueError`.
        part.encode()
    if _ESCAPED.search(part):
        part = _ESCAPED.sub(_escape, part)
    return f"/{part}"


def _escape(match: re.Match[str]) -> str:
    # Upper case, so that each text has one form only.
    return f"%{ord(match[0]):02X}"


def escape_text(text: str) -> str:
    """The beginning of a part, in the form that it has in keys."""
    return _write_text(text)[1:]


def _read_text(part: str) -> str:
    pieces = part.split("%")
    for place, piece in enumerate(pieces[1:], 1):
        if not re.fullmatch(r"[0-7][0-9A-Fa-f]", piece[:2], re.ASCII):
            raise ValueError("expected two hexadecimal digits after each % in the key")
        pieces[place] = chr(int(piece[:2], 16)) + piece[2:]
    return "".join(pieces)


def _integer(width: Width) -> KeyType:
    name, low, high, digits = width.name, width.low, width.high, width.digits
    form = re.compile(rf"[pn]?\d{{{digits}}}", re.ASCII)

    def check(number: Any) -> None:
        if type(number) is not int:
            raise TypeError(f"expected an int as the key, found {number!r}")
        raise ValueError(f"{number} is no {name}: {low} to {high}")

    if low == 0:

        def write(number: Any) -> str:
            if type(number) is not int or not 0 <= number <= high:
                check(number)
            return f"/{number:0{digits}}"

        def read(part: str) -> int:
            if not form.fullmatch(part) or not part[0].isdigit() or int(part) > high:
                raise ValueError(f"expected the {digits} digits of a {name} in the key")
            return int(part)

    else:

        def write(number: Any) -> str:
            if type(number) is not int or not low <= number <= high:
                check(number)
            # Below zero the distance from the smallest: it rises with the number, as texts must.
            return f"/p{number:0{digits}}" if number >= 0 else f"/n{number - low:0{digits}}"

        def read(part: str) -> int:
            if not form.fullmatch(part) or part[0].isdigit() or int(part[1:]) > high:
                raise ValueError(f"expected p or n with {digits} digits in the key")
            return int(part[1:]) + (low if part[0] == "n" else 0)

    return _single(write, read)


def _write_bool(flag: Any) -> str:
    if type(flag) is not bool:
        raise TypeError(f"expected a bool as the key, found {flag!r}")
    return "/1" if flag else "/0"


def _read_bool(part: str) -> bool:
    if part not in ("0", "1"):
        raise ValueError("expected 0 or 1 in the key")
    return part == "1"


def _write_date(day: Any) -> str:
    if type(day) is not date or day.year < 1970:
        raise TypeError(f"expected a date from 1970 on as the key, found {day!r}")
    return "/" + day.isoformat()


def _write_time(time: Any) -> str:
    if type(time) is not Timestamp:
        raise TypeError(f"expected a Timestamp as the key, found {time!r}")
    return f"/{time}"


def _read_time(part: str) -> Timestamp:
    time = Timestamp.parse(part)
    if str(time) != part:
        raise ValueError("expected a time with nine decimals in the key")
    return time


_PLAIN: tuple[tuple[Any, Callable[[Any], str], Callable[[str], Any]], ...] = (
    (str, _write_text, _read_text),
    (bool, _write_bool, _read_bool),
    (date, _write_date, parse_date),
    (Timestamp, _write_time, _read_time),
)
