"""JSON of typed values: checked when it is read, in one form when it is written.

Supported types: `bool`, `int`, the integers of `foldstream.keys` such as `u64`, `float`, `str`,
`None`, `date`, `Timestamp`, `Enum`s of texts, `Optional`, `list`, `dict[str, ...]`, tuples of a
fixed length, dataclasses of these, unions of dataclasses, and `Any` for JSON as it is. A field
`Literal["card"]` has this text only; in a union of dataclasses, such a field in each tells them apart.

Reading ignores fields that a dataclass does not have. A field without a default is required.
Writing keeps the order of a dataclass's fields, so that every SDK stores the same bytes. A field
whose name is a word of Python ends with an underscore, which JSON does not have: `from_` is `from`.
`field(metadata={"json": "total-cents"})` gives a field any other name in JSON, and `"omit_none": True`
leaves it out if it is `None`.
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
from typing import Annotated, Any, Literal, Union, get_args, get_origin

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
        _Twice.met = False
        value = _DECODER.decode(text)
        if "\\u" in text:
            # Half of a pair of surrogates is no text, and could not be stored.
            json.dumps(value, ensure_ascii=False, default=str).encode()
    except (ValueError, RecursionError) as error:
        raise Mismatch(f"{error}") from None
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class _Twice:
    """Stands for the value of a member that occurs twice: `json` would take the last."""

    met = False
    """Whether the JSON that was parsed last has one."""


_TWICE = _Twice()


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        # Not refused at once: it may be in an object that no type looks at.
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                members[name] = _TWICE
            seen.add(name)
        _Twice.met = True
    return members


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_members)


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
        fields = {
            _name(field): one
            for field in dataclasses.fields(value)
            if not ((one := getattr(value, field.name)) is None and _omits_none(field))
        }
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
    if origin is Literal:
        return _literal(declared, arguments)
    if origin is Union or origin is UnionType:
        return _union(declared, arguments)
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
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        NoneType: "null",
        _Twice: "a member that occurs twice",
    }
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
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if type(value) is not float or not math.isfinite(value):
        raise _mismatch("a finite number", value)
    return value


def _encode_float(value: Any) -> str:
    text = repr(_decode_float(value))
    digits, e, exponent = text.partition("e")
    if not e:
        return text
    # As all SDKs write it: 1e16 and 1e-7 instead of 1e+16 and 1e-07, and 0.00001 without an exponent.
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

    def decode(value: Any) -> Any:
        if _Twice.met:
            _refuse_twice(value)
        return check(value)

    new = None if kind is object else kind
    return Codec(decode, lambda value: to_json(check(value)), _copy_raw, new)


def _refuse_twice(value: Any) -> None:
    kind = type(value)
    if kind is _Twice:
        raise _mismatch("JSON", value)
    if kind is dict:
        for name, item in value.items():
            _at(name, _refuse_twice, item)
    elif kind is list:
        for place, item in enumerate(value):
            _at(place, _refuse_twice, item)


_PLAIN = frozenset({str, int, float, bool, NoneType})


def _copy_raw(value: Any) -> Any:
    """A copy, as it will be read: a value must not depend on when it was stored."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is list:
        return [_copy_raw(item) for item in value]
    if kind is dict and all(type(name) is str for name in value):
        return {name: _copy_raw(item) for name, item in value.items()}
    # A tuple becomes a list, a dataclass and a `Counter` an object, a date a text.
    return parse(to_json(value))


def _literal(declared: Any, arguments: tuple[Any, ...]) -> Codec:
    if not all(type(argument) is str for argument in arguments):
        raise TypeError(f"{declared!r}: of literals only those of texts can be stored")
    expected = "one of " + ", ".join(arguments)

    def decode(value: Any) -> str:
        if type(value) is not str or value not in arguments:
            raise Mismatch(f"expected {expected}, found {value if type(value) is str else _shown(value)}")
        return value

    return Codec(decode, lambda value: _encode_text(decode(value)), None, None)


def _union(declared: Any, arguments: tuple[Any, ...]) -> Codec:
    others = [argument for argument in arguments if argument is not NoneType]
    if len(others) == 1:
        return _optional(codec(others[0]))
    tagged = _tagged(declared, others)
    return tagged if len(others) == len(arguments) else _optional(tagged)


def _tags(declared: Any) -> dict[str, str]:
    """The fields of a dataclass that are one text, with their names in JSON."""
    if not (isinstance(declared, type) and dataclasses.is_dataclass(declared)):
        return {}
    hints = typing.get_type_hints(declared)
    tags = {}
    for field in dataclasses.fields(declared):
        texts = get_args(hints[field.name])
        if get_origin(hints[field.name]) is Literal and len(texts) == 1:
            tags[_name(field)] = texts[0]
    return tags


def _tagged(declared: Any, records: list[Any]) -> Codec:
    """The codec of a union of dataclasses."""
    tags = [_tags(record) for record in records]
    for tag in tags[0]:
        known = {one[tag]: record for one, record in zip(tags, records) if tag in one}
        if len(known) == len(records):
            break
    else:
        raise TypeError(
            f"{declared!r}: of unions, `T | None` can be stored, and dataclasses that each have a "
            "different `Literal` text in a field of the same name"
        )
    by_tag = {text: codec(record) for text, record in known.items()}
    by_type = {record: by_tag[text] for text, record in known.items()}
    expected = "one of " + ", ".join(by_tag)

    def decode(value: Any) -> Any:
        if type(value) is not dict:
            raise _mismatch("an object", value)
        if tag not in value:
            raise Mismatch(f"missing field `{tag}`")
        found = value[tag]
        if type(found) is not str or found not in by_tag:
            shown = found if type(found) is str else _shown(found)
            raise Mismatch(f"expected {expected}, found {shown}").within(tag)
        return by_tag[found].decode(value)

    def encode(value: Any) -> str:
        if type(value) not in by_type:
            raise _mismatch(expected, value)
        return by_type[type(value)].encode(value)

    def copy(value: Any) -> Any:
        inner = by_type[type(value)].copy
        return inner(value) if inner else value

    return Codec(decode, encode, copy, None)


def _optional(inner: Codec) -> Codec:
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
        "  pass",
    ]
    pieces, parts, copies, arguments = [], [], [], []
    # Arguments by position are faster, but fields that are keyword-only need their names.
    by_name = any(field.kw_only for field in fields)
    for number, (field, declared, one) in enumerate(zip(fields, types, codecs)):
        known[f"decode_{number}"], known[f"encode_{number}"] = one.decode, one.encode
        known[f"copy_{number}"] = one.copy
        decode += _decode_field(number, field, declared, known)
        encode += [f"  at = {_name(field)!r}; v{number} = value.{field.name}", *_encode_field(number, declared)]
        written = f"{_quoted(number, field, known)}:{{t{number}}}"
        pieces.append(written)
        parts.append(f"None if v{number} is None else f'{written}'" if _omits_none(field) else f"f'{written}'")
        name = f"{field.name}=" if by_name else ""
        copies.append(name + (f"copy_{number}(value.{field.name})" if one.copy else f"value.{field.name}"))
        arguments.append(f"{name}v{number}")
    decode.append(f" return made({', '.join(arguments)})")
    encode.append(" except Mismatch as error: raise error.within(at) from None")
    if any(_omits_none(field) for field in fields):
        encode.append(f" parts = ({', '.join(parts)},)")
        encode.append(" return '{' + ','.join([part for part in parts if part is not None]) + '}'")
    else:
        encode.append(f" return f'{{{{{','.join(pieces)}}}}}'")
    copy = ["def copy(value):", f" return made({', '.join(copies)})"]
    return "\n".join([*decode, *encode, *copy, ""])


def _name(field: dataclasses.Field[Any]) -> str:
    """The name of a field in JSON."""
    named = field.metadata.get("json")
    return field.name.removesuffix("_") if named is None else named


def _omits_none(field: dataclasses.Field[Any]) -> bool:
    """Whether a field that is `None` is not written."""
    return field.metadata.get("omit_none", False) is True


def _quoted(number: int, field: dataclasses.Field[Any], known: dict[str, Any]) -> str:
    """The name of a field as JSON, within an f-string."""
    name = _name(field)
    if name.isidentifier() and name.isascii():
        return _quote(name)
    # Whatever is in it, it is no code.
    known[f"name_{number}"] = _quote(name)
    return f"{{name_{number}}}"


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
        message = f"missing field `{name}`"
        lines.append(f" else: raise Mismatch({message!r})")
    return lines


def _encode_field(number: int, declared: Any) -> list[str]:
    unfit = _unfit(f"v{number}", declared)
    if unfit is None or declared is bool or declared is str:
        return [f"  t{number} = encode_{number}(v{number})"]
    return [f"  if {unfit}: encode_{number}(v{number})", f"  t{number} = str(v{number})"]


def _is_optional(declared: Any) -> bool:
    return get_origin(declared) in (Union, UnionType) and NoneType in get_args(declared)
