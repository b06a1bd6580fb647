"""docs/torch-compatibility.md as data, and look-ups of what its rows name."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGE = REPO / "docs" / "torch-compatibility.md"
TORCH = "torch.distributed.elastic"
OURS = "agentd.elastic"
STATUSES = ("same", "better", "absent")

_CODE = re.compile(r"`([^`]+)`")
_OF_CLASS = re.compile(r"`(\w+)`: ((?:`\w+`(?:, )?)+)")


@dataclass(frozen=True)
class Row:
    """One name, or one fact, of a table."""

    section: str
    name: str
    status: str
    note: str
    line: int

    def __str__(self) -> str:
        return f"{PAGE.name}:{self.line}: {self.section}: {self.name}"


@dataclass(frozen=True)
class Section:
    """A table under its heading; of a module, if the heading is one."""

    title: str
    torch: str
    """torch's module, empty for tables of facts."""
    ours: str
    """Its module here, empty if there is none."""
    rows: tuple[Row, ...]


def sections(text: str) -> list[Section]:
    """All tables of the page, in order."""
    found = []
    for match in re.finditer(r"^## (.*)\n((?:(?!^## ).*\n?)*)", text, re.MULTILINE):
        title, first_line = match[1], text.count("\n", 0, match.start()) + 1
        modules = [name for name in _CODE.findall(title) if "." in name]
        torch = modules[0] if modules else ""
        ours = torch.replace(TORCH, OURS) if torch.startswith(TORCH) else "".join(modules[1:])
        rows = tuple(_rows(title, bool(torch), match[2], first_line + 1))
        if rows:
            found.append(Section(title, torch, ours, rows))
    return found


def _rows(title: str, of_module: bool, body: str, first_line: int) -> Iterator[Row]:
    compares = False  # other tables tell something else
    for offset, line in enumerate(body.split("\n")):
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|") or cells[1:2] == ["status"]:
            compares = line.startswith("|")
        elif compares and line.startswith("| "):
            names = list(names_in(cells[0])) if of_module else (_CODE.findall(cells[0]) or [cells[0]])
            note = cells[2].strip("| ") if len(cells) > 2 else ""
            for name in names:
                yield Row(title, name, cells[1], note, first_line + offset)


def names_in(cell: str) -> Iterator[str]:
    """`A`, `B` are names of the module; after "`C`:" come members of C."""
    for match in _OF_CLASS.finditer(cell):
        yield from (f"{match[1]}.{member}" for member in _CODE.findall(match[2]) if "." not in member)
    yield from _CODE.findall(_OF_CLASS.sub("", cell))


# What a row names.


def find(module: str, name: str) -> object:
    """The thing itself, or for a field that instances have alone the annotation that says so.

    Raises ImportError or AttributeError.
    """
    loaded = importlib.import_module(module)
    owner_name, _, member = name.partition(".")
    owner: object = getattr(loaded, owner_name)
    return _member(owner, member) if member else owner


def _member(owner: object, member: str) -> object:
    for cls in getattr(owner, "__mro__", ()):
        if member in vars(cls):
            return vars(cls)[member]
        if member in inspect.get_annotations(cls) or member in _set_by(cls):
            return None
    return getattr(owner, member)


def _set_by(cls: type) -> set[str]:
    """The attributes that a class' `__init__` sets."""
    init = vars(cls).get("__init__")
    try:
        source = inspect.getsource(init) if inspect.isfunction(init) else ""
    except (OSError, TypeError):
        return set()
    return set(re.findall(r"^\s+self\.(\w+)(?:: [^=]+)? = ", source, re.MULTILINE))


# What torch has.


def public_names(module: str) -> dict[str, object]:
    """What `__all__` names, else what the module defines itself."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    if names is not None:
        return {name: getattr(loaded, name) for name in names}
    return {
        name: value
        for name, value in vars(loaded).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module
    }


def offered_names(package: str) -> dict[str, object]:
    """What a package lets people import from it: its own names and those of its modules."""
    loaded = importlib.import_module(package)
    names = getattr(loaded, "__all__", None)
    return {
        name: value
        for name, value in vars(loaded).items()
        if not name.startswith("_")
        and str(getattr(value, "__module__", "")).startswith(package)
        and not inspect.ismodule(value)
        and (names is None or name in names)
    }


def public_members(cls: type) -> set[str]:
    """Methods, properties, constants and fields that the class itself has."""
    own = {name for name in vars(cls) if not name.startswith("_")}
    if dataclasses.is_dataclass(cls):
        own |= {field.name for field in dataclasses.fields(cls)}
    return own


# Signatures.


def differing(theirs: object, ours: object) -> str:
    """Why `ours` cannot be called as `theirs`; empty if it can."""
    try:
        wanted, given = _parameters(theirs), _parameters(ours)
    except (TypeError, ValueError):
        return ""  # made in C or by a metaclass: it has no signature to compare
    for position, parameter in enumerate(wanted):
        if position >= len(given) or given[position].name != parameter.name:
            names = ", ".join(p.name for p in given)
            return f"parameter {position + 1} should be {parameter.name}; there are {names or 'none'}"
        if not _alike(parameter.default, given[position].default):
            return f"{parameter.name} should be {parameter.default!r}, is {given[position].default!r}"
    return ""


def _parameters(thing: object) -> list[inspect.Parameter]:
    if isinstance(thing, (staticmethod, classmethod)):
        thing = thing.__func__
    assert callable(thing)
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    made = _made_by_factories(thing)
    return [
        parameter.replace(default=made.get(parameter.name, parameter.default))
        for parameter in inspect.signature(thing).parameters.values()
        if parameter.kind in named
    ]


def _made_by_factories(thing: object) -> dict[str, object]:
    """A default that is made anew for each instance, by name."""
    if not (inspect.isclass(thing) and dataclasses.is_dataclass(thing)):
        return {}
    fields = dataclasses.fields(thing)
    return {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}


def _alike(theirs: object, ours: object) -> bool:
    if isinstance(theirs, Enum) and isinstance(ours, Enum):
        return theirs.name == ours.name
    if callable(theirs) and callable(ours):
        return True
    return theirs == ours or repr(theirs) == repr(ours)
