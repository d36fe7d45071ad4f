"""Event time. There is no clock: a fold depends on its events only."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta, timezone

_EPOCH = date(1970, 1, 1)
_EPOCH_ORDINAL = _EPOCH.toordinal()
_SECOND = 1_000_000_000
_DAY = 86_400 * _SECOND
_NANOSECONDS_MAX = 2**64 - 1
_FORM = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
_EXPECTED = "expected a time such as 2026-11-23T14:05:06Z, 1970 to 2554"


class Timestamp(int):
    """An instant: nanoseconds since 1970-01-01T00:00:00Z, up to the year 2554.

    Shown, stored and used as a key in RFC 3339 with nine decimals, such as
    ``2026-11-23T14:05:06.123456789Z``, which sorts as time does. It is an ``int``, so instants
    compare and subtract as numbers; ``+`` and ``-`` also take a ``timedelta``.
    """

    __slots__ = ()

    def __new__(cls, nanoseconds: int) -> Timestamp:
        if not 0 <= nanoseconds <= _NANOSECONDS_MAX:
            raise ValueError(_EXPECTED)
        return super().__new__(cls, nanoseconds)

    @classmethod
    def parse(cls, text: str) -> Timestamp:
        """Reads RFC 3339, with `Z` or an offset. Raises `ValueError`."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(_EXPECTED)
        day, hour, minute, second, fraction, sign, hours, minutes = match.groups()
        hour, minute, second = int(hour), int(minute), int(second)
        if hour > 23 or minute > 59 or second > 59 or (sign and (int(hours) > 23 or int(minutes) > 59)):
            raise ValueError(_EXPECTED)
        try:
            days = date.fromisoformat(day).toordinal() - _EPOCH_ORDINAL
        except ValueError:
            raise ValueError(_EXPECTED) from None
        seconds = days * 86_400 + hour * 3_600 + minute * 60 + second
        if sign:
            offset = int(hours) * 3_600 + int(minutes) * 60
            seconds += offset if sign == "-" else -offset
        return cls(seconds * _SECOND + int((fraction or "0").ljust(9, "0")))

    @property
    def nanoseconds(self) -> int:
        """Nanoseconds since the Unix epoch."""
        return int(self)

    def date(self) -> date:
        """The day in UTC."""
        return date.fromordinal(self // _DAY + _EPOCH_ORDINAL)

    def datetime(self) -> datetime:
        """The same instant in UTC, without what is shorter than a microsecond."""
        return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=self // 1_000)

    def __add__(self, span: timedelta | int) -> Timestamp:
        """A later instant; at most the last one that there is."""
        return _nearest(int(self) + _nanoseconds(span))

    def __sub__(self, other: timedelta | int):  # type: ignore[no-untyped-def]
        """An earlier instant, at least the first one; or, of two instants, how far they are apart."""
        if isinstance(other, Timestamp):
            return timedelta(microseconds=(int(self) - int(other)) // 1_000)
        return _nearest(int(self) - _nanoseconds(other))

    def __str__(self) -> str:
        seconds, nanosecond = divmod(int(self), _SECOND)
        minutes, second = divmod(seconds, 60)
        hours, minute = divmod(minutes, 60)
        return f"{self.date()}T{hours % 24:02}:{minute:02}:{second:02}.{nanosecond:09}Z"

    def __repr__(self) -> str:
        return f"Timestamp({self})"


def parse_date(text: str) -> date:
    """Reads a day such as `2026-11-23`, 1970 to 9999. Raises `ValueError`."""
    # `fromisoformat` also takes other forms, which would sort elsewhere.
    if len(text) != 10 or text[4] != "-" or text[7] != "-" or not text.isascii():
        raise ValueError("expected a date such as 2026-11-23")
    day = date.fromisoformat(text)
    if day < _EPOCH:
        raise ValueError("expected a date from 1970 on")
    return day


def _nearest(nanoseconds: int) -> Timestamp:
    return Timestamp(min(max(nanoseconds, 0), _NANOSECONDS_MAX))


def _nanoseconds(span: timedelta | int) -> int:
    if isinstance(span, timedelta):
        return (span.days * 86_400 + span.seconds) * _SECOND + span.microseconds * 1_000
    return span
