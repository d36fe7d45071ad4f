"""JSON of typed values: checked when it is read, in one form when it is written.

Supported types: `bool`, `int`, the integers of `foldstream.keys` such as `u64`, `float`, `str`,
`None`, `date`, `Timestamp`, `Enum`s of texts, `Optional`, `list`, `dict[str, ...]`, tuples of a
fixed length, dataclasses of these, and `Any` for JSON as it is.

Reading ignores fields that a dataclass does not have. A field without a default is required.
Writing keeps the order of a dataclass's fields, so that every SDK stores the same bytes. A field
whose name is a word of Python ends with an underscore, which JSON does not have: `from_` is `from`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import Enum
from json.encoder import encode_basestring as _quote
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from .errors import Mismatch
from .keys import Width
from .time import Timestamp, parse_date

Decode = Callable[[Any], Any]
Encode = Callable[[Any], str]
Copy = Callable[[Any], Any]


@dataclass(frozen=True)
class Codec:
    """How values of one type are read, written and copied."""

    decode: Decode
    """A value from parsed JSON. Raises `Mismatch`."""
    encode: Encode
    """A value as JSON text. Raises `Mismatch`."""
    copy: Copy | None
    """A value that shares nothing changeable with the first; none if it cannot change at all."""
    new: Callable[[], Any] | None
    """Makes the value that an absent entry begins with, if the type has one that can change."""


def parse(text: str | bytes) -> Any:
    """Parses JSON by the letter: UTF-8, no `NaN`, no half characters. Raises `Mismatch`."""
    try:
        if isinstance(text, bytes):
            # `json` would guess the encoding.
            text = text.decode()
        value = _DECODER.decode(text)
        if "\\u" in text:
            # Half of a pair of surrogates is no text, and could not be stored.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Mismatch(f"{error}") from None
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def to_json(value: Any) -> str:
    """A value without a declared type as JSON text, in the form of declared ones. Raises `Mismatch`."""
    try:
        return _written(value)
    except RecursionError as error:
        raise Mismatch(str(error)) from None


def _written(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _encode_text(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is Timestamp:
        return f'"{value}"'
    if isinstance(value, dict):
        return _written_fields({_field(name): one for name, one in value.items()}, len(value))
    if isinstance(value, (list, tuple)):
        return f"[{','.join([_written(one) for one in value])}]"
    if isinstance(value, Enum):
        return _written(value.value)
    if isinstance(value, int):
        return _digits(value)
    if isinstance(value, float):
        return _encode_float(float(value))
    if isinstance(value, date):
        return f'"{value.isoformat()}"'
    if isinstance(value, str):
        return _encode_text(str.__str__(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {_name(field): getattr(value, field.name) for field in dataclasses.fields(value)}
        return _written_fields(fields, len(fields))
    raise Mismatch(f"{kind.__name__} has no form in JSON")


def _written_fields(fields: dict[str, Any], count: int) -> str:
    if len(fields) != count:
        raise Mismatch("two names of an object are one name in JSON, such as 1 and '1'")
    return "{" + ",".join([f"{_encode_text(name)}:{_written(one)}" for name, one in fields.items()]) + "}"


def _field(name: Any) -> str:
    """The name of a field: as `json` has it, and an instant as text though it is a number."""
    if isinstance(name, (str, date, Enum, Timestamp)):
        return str(name.value if isinstance(name, Enum) else name)
    if name is None or isinstance(name, (bool, int, float)):
        return _written(name)
    raise Mismatch(f"{type(name).__name__} is no name of a field in JSON")


def _digits(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError as error:
        raise Mismatch(str(error)) from None


def codec(declared: Any) -> Codec:
    """The codec of a type. Raises `TypeError` if the type is not supported."""
    try:
        known = _CODECS.get(declared)
    except TypeError:
        # Not hashable, such as Annotated with a list; it is only not remembered.
        return _make(declared)
    if known is None:
        known = _CODECS[declared] = _make(declared)
    return known


_CODECS: dict[Any, Codec] = {}


def _make(declared: Any) -> Codec:
    origin, arguments = get_origin(declared), get_args(declared)
    if declared is Any or declared is object or declared is dict or declared is list:
        return _raw(declared)
    if declared is None or declared is NoneType:
        return Codec(_check(NoneType, "null"), lambda value: _text_of(value, NoneType, "null"), None, None)
    if declared is bool:
        return Codec(_check(bool, "true or false"), _encode_bool, None, None)
    if declared is int:
        return _integer(None)
    if declared is float:
        return Codec(_decode_float, _encode_float, None, None)
    if declared is str:
        return Codec(_check(str, "a text"), _encode_text, None, None)
    if declared is date:
        return Codec(_parsed(parse_date, "a date"), _encode_date, None, None)
    if declared is Timestamp:
        return Codec(_parsed(Timestamp.parse, "a time"), _encode_time, None, None)
    if origin is Annotated:
        widths = [note for note in arguments[1:] if isinstance(note, Width)]
        return _integer(widths[0]) if widths else codec(arguments[0])
    if origin is Union or origin is UnionType:
        return _optional(declared, arguments)
    if origin is list:
        return _list(codec(arguments[0]))
    if origin is tuple and Ellipsis not in arguments:
        return _tuple([codec(argument) for argument in arguments])
    if origin is dict and arguments[0] is str:
        return _mapping(codec(arguments[1]))
    if isinstance(declared, type) and issubclass(declared, Enum):
        return _enum(declared)
    if isinstance(declared, type) and dataclasses.is_dataclass(declared):
        return _record(declared)
    raise TypeError(f"{declared!r} is no type that can be stored; see foldstream.codec")


def _shown(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", NoneType: "null"}
    return names.get(type(value)) or (
        "a number" if isinstance(value, (int, float)) else type(value).__name__
    )


def _mismatch(expected: str, value: Any) -> Mismatch:
    return Mismatch(f"expected {expected}, found {_shown(value)}")


def _check(kind: type, expected: str) -> Decode:
    def decode(value: Any) -> Any:
        if type(value) is not kind:
            raise _mismatch(expected, value)
        return value

    return decode


def _text_of(value: Any, kind: type, text: str) -> str:
    if type(value) is not kind:
        raise _mismatch(text, value)
    return text


def _encode_bool(value: Any) -> str:
    if type(value) is not bool:
        raise _mismatch("true or false", value)
    return "true" if value else "false"


def _integer(width: Width | None) -> Codec:
    if width is None:
        expected = "an integer"

        def decode(value: Any) -> int:
            if type(value) is not int:
                raise _mismatch(expected, value)
            return value

    else:
        low, high = width.low, width.high
        expected = f"an integer from {low} to {high}"

        def decode(value: Any) -> int:
            if type(value) is not int or not low <= value <= high:
                shown = value if type(value) in (int, float) else _shown(value)
                raise Mismatch(f"expected {expected}, found {shown}")
            return value

    return Codec(decode, lambda value: _digits(decode(value)), None, None)


def _decode_float(value: Any) -> float:
    # JSON has one kind of number: 3 is as good as 3.0.
    if type(value) is int:
        value = float(value)
    if type(value) is not float or not math.isfinite(value):
        raise _mismatch("a finite number", value)
    return value


def _encode_float(value: Any) -> str:
    text = repr(_decode_float(value))
    digits, e, exponent = text.partition("e")
    if not e:
        return text
    # As Rust writes it: 1e16 and 1e-7 instead of 1e+16 and 1e-07, and 0.00001 without an exponent.
    if exponent == "-05":
        sign = "-" if value < 0 else ""
        return f"{sign}0.0000{digits.removeprefix('-').replace('.', '')}"
    return f"{digits}e{int(exponent)}"


def _encode_text(value: Any) -> str:
    if type(value) is not str:
        raise _mismatch("a text", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Mismatch("half of a pair of surrogates is no text") from None
    return _quote(value)


def _parsed(read: Callable[[str], Any], expected: str) -> Decode:
    def decode(value: Any) -> Any:
        if type(value) is not str:
            raise _mismatch(expected, value)
        try:
            return read(value)
        except ValueError as error:
            raise Mismatch(str(error)) from None

    return decode


def _encode_date(value: Any) -> str:
    if type(value) is not date or value.year < 1970:
        raise Mismatch(f"expected a date from 1970 on, found {value!r}")
    return f'"{value.isoformat()}"'


def _encode_time(value: Any) -> str:
    if type(value) is not Timestamp:
        raise _mismatch("a Timestamp", value)
    return f'"{value}"'


def _raw(declared: Any) -> Codec:
    kind = declared if declared in (dict, list) else object

    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise _mismatch("an object" if kind is dict else "a list", value)
        return value

    new = None if kind is object else kind
    return Codec(check, lambda value: to_json(check(value)), _copy_raw, new)


def _copy_raw(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {key: _copy_raw(item) for key, item in value.items()}
    if kind is list:
        return [_copy_raw(item) for item in value]
    return value


def _optional(declared: Any, arguments: tuple[Any, ...]) -> Codec:
    others = [argument for argument in arguments if argument is not NoneType]
    if len(others) != 1 or len(arguments) != 2:
        raise TypeError(f"{declared!r}: of unions only `T | None` can be stored")
    inner = codec(others[0])
    copy = inner.copy
    return Codec(
        lambda value: None if value is None else inner.decode(value),
        lambda value: "null" if value is None else inner.encode(value),
        copy and (lambda value: None if value is None else copy(value)),
        None,
    )


def _list(item: Codec) -> Codec:
    copy = item.copy

    def decode(value: Any) -> list[Any]:
        if type(value) is not list:
            raise _mismatch("a list", value)
        return [_at(place, item.decode, one) for place, one in enumerate(value)]

    def encode(value: Any) -> str:
        if type(value) is not list:
            raise _mismatch("a list", value)
        return f"[{','.join([_at(place, item.encode, one) for place, one in enumerate(value)])}]"

    return Codec(decode, encode, list if copy is None else lambda value: [copy(one) for one in value], list)


def _at(place: Any, use: Callable[[Any], Any], value: Any) -> Any:
    try:
        return use(value)
    except Mismatch as error:
        raise error.within(place if type(place) is str else f"[{place}]") from None


def _tuple(items: list[Codec]) -> Codec:
    expected = f"a list of {len(items)}"

    def decode(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or len(value) != len(items):
            raise _mismatch(expected, value)
        return tuple(_at(place, item.decode, one) for place, (item, one) in enumerate(zip(items, value)))

    def encode(value: Any) -> str:
        if type(value) is not tuple or len(value) != len(items):
            raise _mismatch(f"a tuple of {len(items)}", value)
        parts = [_at(place, item.encode, one) for place, (item, one) in enumerate(zip(items, value))]
        return f"[{','.join(parts)}]"

    copies = [item.copy for item in items]
    if not any(copies):
        return Codec(decode, encode, None, None)
    return Codec(
        decode,
        encode,
        lambda value: tuple(copy(one) if copy else one for copy, one in zip(copies, value)),
        None,
    )


def _mapping(item: Codec) -> Codec:
    copy = item.copy

    def decode(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _mismatch("an object", value)
        return {key: _at(key, item.decode, one) for key, one in value.items()}

    def encode(value: Any) -> str:
        if type(value) is not dict:
            raise _mismatch("an object", value)
        parts = [f"{_encode_text(key)}:{_at(key, item.encode, one)}" for key, one in value.items()]
        return f"{{{','.join(parts)}}}"

    return Codec(
        decode,
        encode,
        dict if copy is None else lambda value: {key: copy(one) for key, one in value.items()},
        dict,
    )


def _enum(declared: type[Enum]) -> Codec:
    members = {member.value: member for member in declared}
    if not all(type(value) is str for value in members):
        raise TypeError(f"{declared.__name__}: of enums only those of texts can be stored")
    expected = "one of " + ", ".join(members)

    def decode(value: Any) -> Enum:
        if type(value) is not str or value not in members:
            raise Mismatch(f"expected {expected}, found {value if type(value) is str else _shown(value)}")
        return members[value]

    def encode(value: Any) -> str:
        if type(value) is not declared:
            raise _mismatch(expected, value)
        return _encode_text(value.value)

    return Codec(decode, encode, None, None)


def _record(declared: type) -> Codec:
    """The codec of a dataclass, whose functions are compiled: they run for each event."""
    hints = typing.get_type_hints(declared, include_extras=True)
    fields = dataclasses.fields(declared)
    name = declared.__name__
    for field in fields:
        if not field.init:
            raise TypeError(f"{name}.{field.name}: fields with init=False cannot be stored")
    known: dict[str, Any] = {"Mismatch": Mismatch, "mismatch": _mismatch, "made": declared, "quote": _quote}
    # Remembered before its fields are looked at, since they may contain the dataclass itself.
    lazy = Codec(
        lambda value: known["decode"](value),
        lambda value: known["encode"](value),
        lambda value: known["copy"](value),
        None,
    )
    _CODECS[declared] = lazy
    try:
        codecs = [codec(hints[field.name]) for field in fields]
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    finally:
        del _CODECS[declared]
    fixed = declared.__dataclass_params__.frozen and not any(one.copy for one in codecs)  # type: ignore[attr-defined]
    source = _record_source(fields, [hints[field.name] for field in fields], codecs, known)
    exec(compile(source, f"<codec of {name}>", "exec"), known)  # noqa: S102 - made of identifiers
    required = any(
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        for field in fields
    )
    return Codec(
        known["decode"],
        known["encode"],
        None if fixed else known["copy"],
        None if required or fixed else declared,
    )


def _record_source(
    fields: tuple[dataclasses.Field[Any], ...], types: list[Any], codecs: list[Codec], known: dict[str, Any]
) -> str:
    decode = [
        "def decode(value):",
        " if type(value) is not dict: raise mismatch('an object', value)",
    ]
    encode = [
        "def encode(value):",
        " if type(value) is not made: raise Mismatch(f'expected {made.__name__}, found {value!r}')",
        " at = ''",
        " try:",
    ]
    pieces, copies, arguments = [], [], []
    # Arguments by position are faster, but fields that are keyword-only need their names.
    by_name = any(field.kw_only for field in fields)
    for number, (field, declared, one) in enumerate(zip(fields, types, codecs)):
        known[f"decode_{number}"], known[f"encode_{number}"] = one.decode, one.encode
        known[f"copy_{number}"] = one.copy
        decode += _decode_field(number, field, declared, known)
        encode += [f"  at = {_name(field)!r}; v{number} = value.{field.name}", *_encode_field(number, declared)]
        pieces.append(f"{_quote(_name(field))}:{{t{number}}}")
        name = f"{field.name}=" if by_name else ""
        copies.append(name + (f"copy_{number}(value.{field.name})" if one.copy else f"value.{field.name}"))
        arguments.append(f"{name}v{number}")
    decode.append(f" return made({', '.join(arguments)})")
    text = ",".join(pieces)
    encode += [
        " except Mismatch as error: raise error.within(at) from None",
        f" return f'{{{{{text}}}}}'",
    ]
    copy = ["def copy(value):", f" return made({', '.join(copies)})"]
    return "\n".join([*decode, *encode, *copy, ""])


def _name(field: dataclasses.Field[Any]) -> str:
    """The name of a field in JSON."""
    return field.name.removesuffix("_")


# The checks of plain types are written out below: a call costs more than the check.
def _unfit(variable: str, declared: Any) -> str | None:
    """The condition under which a variable does not have a plain type; none for other types."""
    if declared is str or declared is int or declared is bool:
        return f"type({variable}) is not {declared.__name__}"
    if get_origin(declared) is Annotated:
        for note in get_args(declared)[1:]:
            if isinstance(note, Width):
                return f"type({variable}) is not int or not {note.low} <= {variable} <= {note.high}"
    return None


def _decode_field(
    number: int, field: dataclasses.Field[Any], declared: Any, known: dict[str, Any]
) -> list[str]:
    name = _name(field)
    lines = [f" if {name!r} in value:", f"  v{number} = value[{name!r}]"]
    unfit = _unfit(f"v{number}", declared)
    indent = "  "
    if unfit:
        lines.append(f"  if {unfit}:")
        indent = "   "
    lines += [
        f"{indent}try: v{number} = decode_{number}(v{number})",
        f"{indent}except Mismatch as error: raise error.within({name!r}) from None",
    ]
    if field.default_factory is not dataclasses.MISSING:
        known[f"default_{number}"] = field.default_factory
        lines.append(f" else: v{number} = default_{number}()")
    elif field.default is not dataclasses.MISSING:
        known[f"default_{number}"] = field.default
        lines.append(f" else: v{number} = default_{number}")
    elif _is_optional(declared):
        lines.append(f" else: v{number} = None")
    else:
        lines.append(f" else: raise Mismatch('missing field `{name}`')")
    return lines


def _encode_field(number: int, declared: Any) -> list[str]:
    unfit = _unfit(f"v{number}", declared)
    if unfit is None or declared is bool or declared is str:
        return [f"  t{number} = encode_{number}(v{number})"]
    return [f"  if {unfit}: encode_{number}(v{number})", f"  t{number} = str(v{number})"]


def _is_optional(declared: Any) -> bool:
    return get_origin(declared) in (Union, UnionType) and NoneType in get_args(declared)
