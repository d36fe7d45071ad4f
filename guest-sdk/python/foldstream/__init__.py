"""Foldstream SDK for Python: write a projection or a handler, test it with pytest, build one `.wasm` file."""

from .effects import Effects
from .errors import InvalidArguments, NotFound, Reject, Retry
from .events import Event, on
from .handler import Handler
from .keys import i8, i16, i32, i64, u8, u16, u32, u64
from .manifest import EventId, HandlerManifest, Inbox, KeyRule, Manifest
from .migration import NewEntries, OldEntry, UnknownVersion
from .module import query
from .projection import Projection
from .tables import Table, Value
from .time import Timestamp
from .timers import Fired, Timer
from .versions import upcast

__all__ = [
    "Effects",
    "Event",
    "EventId",
    "Fired",
    "Handler",
    "HandlerManifest",
    "Inbox",
    "InvalidArguments",
    "KeyRule",
    "Manifest",
    "NewEntries",
    "NotFound",
    "OldEntry",
    "Projection",
    "Reject",
    "Retry",
    "Table",
    "Timer",
    "Timestamp",
    "UnknownVersion",
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
    "upcast",
]
