"""Keys have the texts that every SDK writes: `guest-sdk/conformance/keys.json`."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from foldstream import Timestamp, keys
from foldstream.keys import key_type, tuple_type

VECTORS = json.loads((Path(__file__).parents[2] / "conformance/keys.json").read_text())
TYPES: dict[str, Any] = {"text": str, "bool": bool, "date": date, "time": Timestamp}
READ: dict[str, Any] = {"date": date.fromisoformat, "time": Timestamp.parse}


def of(names: list[str]) -> keys.KeyType:
    return tuple_type(tuple(key_type(TYPES.get(name) or getattr(keys, name)) for name in names))


@pytest.mark.parametrize("vector", VECTORS["written"], ids=lambda vector: vector["text"])
def test_keys_are_written_and_read_as_in_every_language(vector: dict[str, Any]) -> None:
    parts = [READ.get(name, lambda value: value)(value) for name, value in zip(vector["types"], vector["key"])]
    key = parts[0] if len(parts) == 1 else tuple(parts)
    kind = of(vector["types"])
    assert kind.write(key) == vector["text"]
    assert kind.read(vector["text"]) == key


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda vector: vector["text"])
def test_keys_of_another_form_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        of(vector["types"]).read(vector["text"])


@pytest.mark.parametrize(
    ("declared", "key"),
    [
        (str, 1),
        (str, "\ud800"),
        (keys.u8, 256),
        (keys.u8, -1),
        (keys.u8, True),
        (keys.u64, 1.0),
        (bool, 1),
        (date, date(1969, 12, 31)),
        (Timestamp, 5),
        (tuple[str, str], ("a",)),
        (tuple[str, str], "ab"),
    ],
)
def test_keys_of_another_type_are_refused(declared: Any, key: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        key_type(declared).write(key)


@pytest.mark.parametrize("declared", [int, float, bytes, tuple[str], tuple[str, ...], list[str], dict])
def test_types_that_are_no_keys_are_refused(declared: Any) -> None:
    with pytest.raises(TypeError):
        key_type(declared)


def test_numbers_sort_as_texts() -> None:
    numbers = [-(2**63), -(2**62), -10, -9, -1, 0, 1, 9, 10, 2**63 - 1]
    texts = [key_type(keys.i64).write(number) for number in numbers]
    assert texts == sorted(texts)


def test_times_end_with_the_last_instant_and_begin_with_the_first() -> None:
    now = Timestamp.parse("2026-11-23T14:05:06Z")
    assert now + timedelta(days=365_000) == now + 2**70 == Timestamp(2**64 - 1)
    assert now - timedelta(days=365_000) == now + -(2**70) == Timestamp(0)
    assert (now + 5) - now == timedelta(0) and now - 5 + 5 == now
