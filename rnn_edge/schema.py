"""Decode untrusted JSON or TOML values into frozen dataclasses, strictly and with the place of each mistake."""

import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class SchemaError(ValueError):
    """A value does not fit; the message starts with the place, like ``model.layers``."""


def decode(kind: type[T], value: object, *, strict: bool, where: str = "") -> T:
    """Build a ``kind`` (a dataclass) from parsed JSON or TOML.

    ``strict`` refuses unknown keys and suggests the near one; otherwise they are passed over, so that
    a newer writer may add fields.

    Raises:
        SchemaError: a field is missing, unknown, or of another type.
    """
    if not isinstance(value, Mapping):
        raise SchemaError(f"{where or 'the top level'} is {_name(value)}, not a table")
    hints = _hints(typing.cast(Hashable, kind))
    if strict:
        for key in value:
            if key not in hints:
                near = difflib.get_close_matches(str(key), hints, n=1)
                suggestion = f"; did you mean {near[0]}?" if near else ""
                raise SchemaError(f"{_join(where, str(key))} is not a known key{suggestion}")
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # callers pass dataclasses
        place = _join(where, field.name)
        if field.name in value:
            arguments[field.name] = _decode(hints[field.name], value[field.name], strict, place)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SchemaError(f"{place} is missing")
    return kind(**arguments)


def encode(value: object) -> Any:
    """The inverse of ``decode``: dataclasses to plain dictionaries, tuples to lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


@functools.cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(kind: Any, value: object, strict: bool, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise SchemaError(f"{where} is {value!r}, not one of {', '.join(map(str, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and types.NoneType in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return _decode(inner, value, strict, where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise SchemaError(f"{where} is {_name(value)}, not a list")
        inner = arguments[0]
        return tuple(_decode(inner, item, strict, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise SchemaError(f"{where} is {_name(value)}, not a table")
        return {str(key): _decode(arguments[1], item, strict, _join(where, str(key))) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return decode(typing.cast(type, kind), value, strict=strict, where=where)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(value) is not kind:
        raise SchemaError(f"{where} is {_name(value)}, not {_NAMES.get(kind, kind.__name__)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise SchemaError(f"{where} is not a finite number")
    if isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
        raise SchemaError(f"{where} has half a character")
    return value


_SURROGATE = re.compile("[\ud800-\udfff]")
_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


def _name(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    return _NAMES.get(type(value), type(value).__name__)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
