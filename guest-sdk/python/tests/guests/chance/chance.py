"""Stores all that differs from run to run elsewhere, and how the system is out of reach."""

import os
import random
import secrets
import socket
import threading
import time
import uuid
from typing import Any

from foldstream import Event, Manifest, Projection, Table, u64


class Chance(Projection):
    manifest = Manifest("chance", ["chance.*"])
    seen = Table[u64, Any]("seen")

    def apply(self, event: Event) -> None:
        if event.kind == "fail":
            self.fail(event.data)
            return
        before = time.monotonic()
        time.sleep(3_600)
        self.seen[event.sequence] = {
            "clocks": [time.time_ns(), time.perf_counter_ns()],
            "slept": time.monotonic() - before >= 3_600,
            "draws": [random.random(), secrets.token_hex(8), str(uuid.uuid4()), random.sample(range(99), 5)],
            "set": list({"one", "two", "three", "four", "five"}),
            "dict": list({"one": 1, "two": 2, "three": 3}),
            "addresses": id(event) % 8,
            "file": attempt(lambda: open("/etc/passwd").read()),
            "folder": attempt(lambda: os.listdir("/")),
            "socket": attempt(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
            "thread": attempt(lambda: threading.Thread(target=print).start()),
            "environment": sorted(os.environ),
        }
        print("printed", event.sequence)

    async def later(self) -> None:
        """Never runs."""

    def fail(self, how: str | bytes) -> None:
        match how:
            case "assert":
                assert not how, "it does not hold"
            case "drop":
                self.later()
            case "recurse":
                self.fail(how)
            case "exit":
                raise SystemExit(3)
            case "allocate":
                bytearray(1 << 30)


def attempt(what: Any) -> str:
    try:
        return f"worked: {what()!r}"
    except Exception as error:
        return type(error).__name__
