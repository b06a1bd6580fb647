"""Frozen data from JSON objects of another version: what it adds is left out, what it lacks has its default.

What is there must have its type. Anything else is a `ShapeError`, never another exception. `plain` is the way
back.
"""

from __future__ import annotations

import enum
import functools
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints


class ShapeError(Exception):
    """Some JSON holds something else than it should."""


def build(cls: Any, body: object, where: str) -> Any:
    """A frozen dataclass from its JSON object: unknown fields are left out. Raises `ShapeError`."""
    if not isinstance(body, dict):
        raise ShapeError(f"{where} is no JSON object")
    values = {
        name: _value(kind, body[name], f"{where}.{name}")
        for name, kind in _field_types(cls).items()
        if name in body
    }
    lacking = [name for name in _required(cls) if name not in values]
    if lacking:
        raise ShapeError(f"{where} lacks {', '.join(lacking)}")
    return cls(**values)


def plain(value: object) -> object:
    """What json does not know by itself, for its `default`: frozen data, read-only maps, enums.

    Raises `TypeError` for anything else.
    """
    if is_dataclass(value):
        return body_of(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not for JSON")


def body_of(value: Any) -> dict[str, Any]:
    """The fields of frozen data, in their order."""
    cls: Any = type(value)
    return {name: getattr(value, name) for name in _field_names(cls)}


@functools.cache
def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


def shown(value: object) -> str:
    """The value for a sentence: short, and whatever it is."""
    if isinstance(value, list | dict):
        # Not its content: that may be nested too deeply to be written out.
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        return repr(value[:60])
    return f"{value!r:.60}"


@functools.cache
def _field_types(cls: type) -> Mapping[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


@functools.cache
def _required(cls: type) -> tuple[str, ...]:
    return tuple(
        field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING
    )


def _value(kind: Any, value: Any, where: str) -> Any:
    # First what nearly all are: to look into a type takes longer than all else.
    if kind is float and type(value) in (int, float):
        return _finite(value, where)
    if type(value) is kind:
        return value
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        inner = next(arg for arg in get_args(kind) if arg is not type(None))
        return None if value is None else _value(inner, value, where)
    if origin is tuple and isinstance(value, list):
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return tuple(_value(kinds[0], item, where) for item in value)
        if len(kinds) == len(value):
            return tuple(_value(each, item, where) for each, item in zip(kinds, value, strict=True))
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _value(get_args(kind)[1], item, where) for key, item in value.items()}
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        return build(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum) and value in [item.value for item in kind]:
        return kind(value)
    raise ShapeError(f"{where} cannot be {shown(value)}")


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ShapeError(f"{where} is no number that can be reckoned with")
    return number
