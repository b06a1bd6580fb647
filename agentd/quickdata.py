"""`dataclass` as the standard library means it, at a sixth of its price when a module is imported.

The standard library writes and compiles up to six methods of each class when the class is made: a millisecond
each, and a program here has up to two hundred. This one leaves the fields, the slots and the inheritance to
the standard library, shares the methods that are alike in all classes, and writes `__init__` when somebody
first asks for it. `fields`, `replace`, `asdict`, `match`, `pickle`, `inspect.signature` and type checkers see
an ordinary dataclass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, Final

__all__ = ["dataclass"]


class _Factory:
    """Stands in a signature for a default that is made anew for each instance."""

    def __repr__(self) -> str:
        return "<factory>"


_FACTORY: Final = _Factory()


def _dataclass(
    cls: type | None = None,
    /,
    *,
    eq: bool = True,
    frozen: bool = False,
    slots: bool = False,
    kw_only: bool = False,
) -> Any:
    """Make a dataclass of a class. The arguments are those of `dataclasses.dataclass`."""

    def make(plain: type) -> Any:
        return _made(plain, eq=eq, frozen=frozen, slots=slots, kw_only=kw_only)

    return make if cls is None else make(cls)


if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    dataclass = _dataclass


def _made(plain: type, *, eq: bool, frozen: bool, slots: bool, kw_only: bool) -> Any:
    own = frozenset(vars(plain))
    # Without one, a signature is taken, which costs more than all the rest, and would be one of no arguments.
    plain.__doc__ = plain.__doc__ or plain.__name__
    # To freeze is to compile two methods. Of a class with bases the library wants to know it, to judge them.
    inherits = any(dataclasses.is_dataclass(base) for base in plain.__bases__)
    cls: Any = dataclasses.dataclass(
        init=False, repr=False, eq=False, frozen=frozen and inherits, slots=slots, kw_only=kw_only
    )(plain)
    params = cls.__dataclass_params__
    params.init = params.repr = True
    params.eq, params.frozen = eq, frozen
    for name, method in _methods(cls, params, own):
        setattr(cls, name, method)
    return cls


def _methods(cls: type, params: Any, own: frozenset[str]) -> list[tuple[str, Any]]:
    """All that it has, less what the class itself defines."""
    fields = dataclasses.fields(cls)
    compared = tuple(field.name for field in fields if field.compare)
    hashed = tuple(field.name for field in fields if (field.compare if field.hash is None else field.hash))
    methods: dict[str, Any] = {
        "__init__": _Unwritten(cls, frozen=params.frozen),
        "__repr__": _repr_of(tuple(field.name for field in fields if field.repr)),
    }
    if params.eq:
        methods["__eq__"] = _eq_of(compared)
        # A class with an __eq__ of its own has this None from the interpreter, which is no wish of its own.
        if "__hash__" not in own or (vars(cls)["__hash__"] is None and "__eq__" in own):
            own -= {"__hash__"}
            methods["__hash__"] = _hash_of(hashed) if params.frozen else None
    if params.frozen:
        names = tuple(field.name for field in fields)
        methods["__setattr__"], methods["__delattr__"] = _refusals_of(cls, frozenset(names))
        if "__slots__" in vars(cls):
            methods["__getstate__"], methods["__setstate__"] = _pickled_as(names)
    return [(name, method) for name, method in methods.items() if name not in own]


def _values_of(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda instance: tuple(getattr(instance, name) for name in names)


def _repr_of(names: tuple[str, ...]) -> Callable[[Any], str]:
    @recursive_repr()
    def shown(self: Any) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({values})"

    return shown


def _eq_of(names: tuple[str, ...]) -> Callable[[Any, object], Any]:
    values = _values_of(names)

    def equal(self: Any, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    return equal


def _hash_of(names: tuple[str, ...]) -> Callable[[Any], int]:
    values = _values_of(names)

    def hash_of(self: Any) -> int:
        return hash(values(self))

    return hash_of


def _refusals_of(cls: Any, names: frozenset[str]) -> tuple[Callable[..., None], Callable[..., None]]:
    """Of frozen classes. A subclass that is no dataclass may have attributes of its own."""

    def refuse_set(self: Any, name: str, value: object) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)

    def refuse_delete(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return refuse_set, refuse_delete


def _pickled_as(names: tuple[str, ...]) -> tuple[Callable[[Any], Any], Callable[[Any, Any], None]]:
    """Of frozen classes with slots, whose attributes pickle could not set."""

    def state_of(self: Any) -> list[Any]:
        return [getattr(self, name) for name in names]

    def restore(self: Any, state: list[Any]) -> None:
        for name, value in zip(names, state, strict=True):
            object.__setattr__(self, name, value)

    return state_of, restore


class _Unwritten:
    """An `__init__` that gives way to the real one at first sight."""

    def __init__(self, cls: type, *, frozen: bool) -> None:
        self._cls = cls
        self._frozen = frozen

    def __get__(self, instance: object, owner: type) -> Any:
        init = _written(self._cls, frozen=self._frozen)
        self._cls.__init__ = init  # type: ignore[misc]
        return init.__get__(instance, owner)


def _written(cls: type, *, frozen: bool) -> Any:
    fields = dataclasses.fields(cls)
    names: dict[str, Any] = {"_set": object.__setattr__, "_FACTORY": _FACTORY}
    parameters = ["self"]
    keywords: list[str] = []
    body: list[str] = []
    for field in fields:
        if field.init:
            (keywords if field.kw_only else parameters).append(field.name + _default(field, names))
        if (value := _value(field, names)) is not None:
            body.append(f"_set(self, {field.name!r}, {value})" if frozen else f"self.{field.name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    if keywords:
        parameters += ["*", *keywords]
    text = f"def __init__({', '.join(parameters)}):\n " + "\n ".join(body or ["pass"])
    exec(text, names)  # noqa: S102 (made of the names of fields)
    init = names["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    init.__module__ = cls.__module__
    init.__annotations__ = {**{field.name: field.type for field in fields if field.init}, "return": None}
    return init


def _default(field: Field[Any], names: dict[str, Any]) -> str:
    if field.default_factory is not MISSING:
        return "=_FACTORY"
    if field.default is MISSING:
        return ""
    names[f"_default_{field.name}"] = field.default
    return f"=_default_{field.name}"


def _value(field: Field[Any], names: dict[str, Any]) -> str | None:
    """What the field is set to; none, if that is left to others."""
    if field.default_factory is not MISSING:
        names[f"_new_{field.name}"] = field.default_factory
        new = f"_new_{field.name}()"
        return f"{new} if {field.name} is _FACTORY else {field.name}" if field.init else new
    if field.init:
        return field.name
    if field.default is MISSING:
        return None
    names[f"_default_{field.name}"] = field.default
    return f"_default_{field.name}"
