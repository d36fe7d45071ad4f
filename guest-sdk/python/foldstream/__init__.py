"""Foldstream SDK for Python: write a projection, test it with pytest, build one `.wasm` file."""

from .errors import InvalidArguments, NotFound, Reject, Retry
from .events import Event, on
from .keys import i8, i16, i32, i64, u8, u16, u32, u64
from .manifest import EventId, Inbox, KeyRule, Manifest
from .projection import Projection, query
from .tables import Table, Value
from .time import Timestamp

__all__ = [
    "Event",
    "EventId",
    "Inbox",
    "InvalidArguments",
    "KeyRule",
    "Manifest",
    "NotFound",
    "Projection",
    "Reject",
    "Retry",
    "Table",
    "Timestamp",
    "Value",
    "i8",
    "i16",
    "i32",
    "i64",
    "on",
    "query",
    "u8",
    "u16",
    "u32",
    "u64",
]
