"""Values are checked when they are read, and written in one form."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Any, Literal

import pytest
from foldstream import Timestamp, u8, u64
from foldstream.codec import codec, parse, to_json
from foldstream.errors import Mismatch


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Part:
    name: str
    grams: u64 = 0


@dataclass
class Parcel:
    parts: list[Part]
    colour: Colour
    at: Timestamp
    day: date
    labels: dict[str, str] = field(default_factory=dict)
    note: str | None = None
    weight: float = 0.0
    pair: tuple[str, u8] = ("", 0)
    from_: Any = None


PARCEL = (
    '{"parts":[{"name":"a\\"b","grams":3}],"colour":"red","at":"2026-11-23T14:05:06.000000001Z",'
    '"day":"2026-11-23","labels":{"x":"y"},"note":null,"weight":1.5,"pair":["p",255],"from":[1,{"a":null}]}'
)


def test_a_value_is_read_and_written_as_it_was() -> None:
    parcel = codec(Parcel).decode(parse(PARCEL))
    assert parcel.parts == [Part('a"b', 3)] and parcel.from_ == [1, {"a": None}]
    assert codec(Parcel).encode(parcel) == PARCEL


def test_a_copy_shares_nothing_that_changes() -> None:
    parcel = codec(Parcel).decode(parse(PARCEL))
    copy = codec(Parcel).copy
    assert copy is not None
    other = copy(parcel)
    assert other == parcel
    other.parts[0].grams = 9
    other.labels["z"] = ""
    other.from_[1]["a"] = 1
    assert codec(Parcel).encode(parcel) == PARCEL
    assert codec(int).copy is None and codec(tuple[str, u8]).copy is None


@pytest.mark.parametrize(
    ("declared", "text", "message"),
    [
        (Part, "[]", "expected an object, found a list"),
        (Part, "{}", "missing field `name`"),
        (Part, '{"name":1}', "name: expected a text, found a number"),
        (Part, '{"name":"a","grams":-1}', "grams: expected an integer from 0 to"),
        (Part, '{"name":"a","grams":1.0}', "grams: expected an integer from 0 to"),
        (Part, '{"name":"a","grams":true}', "grams: expected an integer from 0 to"),
        (Part, '{"name":"a","grams":18446744073709551616}', "grams: expected an integer from 0 to"),
        (list[Part], '[{"name":"a"},{}]', "[1]: missing field `name`"),
        (dict[str, int], '{"a":"b"}', "a: expected an integer, found a text"),
        (Colour, '"green"', "expected one of red, blue, found green"),
        (date, '"2026-02-29"', "day"),
        (Timestamp, '"yesterday"', "expected a time"),
        (float, "1e999", "expected a finite number"),
        (None, "1", "expected null"),
        (Any, "NaN", "NaN is no JSON"),
        (Any, '"\\ud800"', "surrogates"),
        (Any, "{", "Expecting"),
        (Any, '"a\nb"', "control character"),
        (Any, "[" * 100_000, ""),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(declared: Any, text: str, message: str) -> None:
    with pytest.raises(Mismatch) as raised:
        codec(declared).decode(parse(text))
    assert message in str(raised.value)


def test_bytes_have_to_be_utf8() -> None:
    assert parse(b'"\xc3\xab"') == "ë"
    for data in (b"\xff", '"a"'.encode("utf-16")):
        with pytest.raises(Mismatch):
            parse(data)


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (Part, {"name": "a"}),
        (Part, Part(1)),  # type: ignore[arg-type]
        (Part, Part("a", 2**64)),
        (Part, Part("\ud800")),
        (float, float("nan")),
        (int, True),
        (Any, object()),
        (Any, {"a": float("inf")}),
        (Any, {1: "a", "1": "b"}),
        (Any, {(1, 2): "a"}),
        (Any, ["\ud800"]),
        pytest.param(Any, 10**5_000, id="a huge number"),
        pytest.param(int, 10**5_000, id="a huge integer"),
        (dict[str, int], {1: 1}),
    ],
)
def test_what_has_no_form_is_not_written(declared: Any, value: Any) -> None:
    with pytest.raises(Mismatch):
        codec(declared).encode(value)


@pytest.mark.parametrize("declared", [int | str, set[str], bytes, object(), dict[int, str], tuple[int, ...]])
def test_types_that_cannot_be_stored_are_refused(declared: Any) -> None:
    with pytest.raises(TypeError):
        codec(declared)


def test_answers_of_queries_may_be_anything_of_these() -> None:
    answer = {"day": date(2026, 11, 23), "at": [Timestamp(1)], "part": (Part("ë", 1), Colour.RED)}
    assert to_json(answer) == (
        '{"day":"2026-11-23","at":["1970-01-01T00:00:00.000000001Z"],"part":[{"name":"ë","grams":1},"red"]}'
    )
    with pytest.raises(Mismatch):
        to_json({1, 2})


def test_json_as_it_is_is_written_like_declared_types() -> None:
    values = {"at": Timestamp(1), "day": date(2026, 11, 23), "parts": (Part("a", 1),), "of": Colour.RED}
    written = (
        '{"at":"1970-01-01T00:00:00.000000001Z","day":"2026-11-23","parts":[{"name":"a","grams":1}],"of":"red"}'
    )
    assert codec(Any).encode(values) == to_json(values) == written
    names = {Timestamp(1): 1, date(2026, 11, 23): 1, 5: 1, 1.5: 1, False: 1, None: 1}
    assert codec(dict).encode(names) == (
        '{"1970-01-01T00:00:00.000000001Z":1,"2026-11-23":1,"5":1,"1.5":1,"false":1,"null":1}'
    )
    assert codec(list).encode([1e16, -1.5e-5, -0.0, 2**64]) == "[1e16,-0.000015,-0.0,18446744073709551616]"
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(Mismatch):
        codec(Any).encode(circle)


def test_numbers_are_written_as_rust_writes_them() -> None:
    floats = [1.0, 0.1, 1.5e300, -0.0, 1e15, 1e16, 0.0001, -1.5e-5, 1.5e-6, 5]
    written = "[1.0,0.1,1.5e300,-0.0,1000000000000000.0,1e16,0.0001,-0.000015,1.5e-6,5.0]"
    assert codec(list[float]).encode(floats) == written
    assert codec(list[int]).encode([0, -5, 2**64]) == "[0,-5,18446744073709551616]"


@dataclass(kw_only=True)
class Card:
    kind: Literal["card"] = "card"
    number: str


@dataclass(kw_only=True)
class Cash:
    kind: Literal["cash"] = "cash"
    change: u64 | None = field(default=None, metadata={"omit_none": True})


@dataclass
class Paid:
    total: u64 = field(metadata={"json": "total'{cents}\\"})
    by: Card | Cash
    refund: Card | Cash | None = None


def test_unions_of_dataclasses_are_told_apart_by_a_text() -> None:
    for text, value in [
        ('{"kind":"card","number":"1"}', Card(number="1")),
        ('{"kind":"cash"}', Cash()),
        ('{"kind":"cash","change":2}', Cash(change=2)),
    ]:
        assert codec(Card | Cash).decode(parse(text)) == value
        assert codec(Card | Cash).encode(value) == text == to_json(value)
    for text, message in [
        ("{}", "missing field `kind`"),
        ('{"kind":"gold"}', "kind: expected one of card, cash, found gold"),
        ('{"kind":["card"]}', "kind: expected one of card, cash, found a list"),
        ('{"kind":"card","number":1}', "number: expected a text"),
        ("[]", "expected an object, found a list"),
    ]:
        with pytest.raises(Mismatch, match=message):
            codec(Card | Cash).decode(parse(text))
    with pytest.raises(TypeError, match="a different `Literal` text"):
        codec(Card | Part)


def test_fields_may_have_any_name_in_json() -> None:
    paid = Paid(5, Cash(), Card(number="1"))
    text = codec(Paid).encode(paid)
    assert text == to_json(paid)
    assert text == (
        '{"total\'{cents}\\\\":5,"by":{"kind":"cash"},"refund":{"kind":"card","number":"1"}}'
    )
    assert codec(Paid).decode(parse(text)) == paid
    with pytest.raises(Mismatch, match="missing field `total'{cents}"):
        codec(Paid).decode({})
    copy = codec(Paid).copy
    assert copy is not None and copy(paid) == paid and copy(paid).by is not paid.by
