"""A quick dataclass is, to all who look at it, what the standard library would have made."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agentd import quickdata

REPO = Path(__file__).resolve().parents[2]

SEEN_OF_ALL = """
import dataclasses, importlib, inspect, json, pkgutil, sys
sys.path[:0] = [".", "client"]
from agentd import quickdata
if sys.argv[1] == "theirs":
    quickdata.dataclass = dataclasses.dataclass

def seen(cls):
    return {
        "signature": str(inspect.signature(cls)),
        "fields": [(f.name, f.type, f.init, f.repr, f.compare) for f in dataclasses.fields(cls)],
        "params": [getattr(cls.__dataclass_params__, name) for name in ("init", "repr", "eq", "frozen")],
        "match": cls.__match_args__,
        "slots": getattr(cls, "__slots__", None),
        "hashed": cls.__hash__ is not None,
        "own": sorted(set(vars(cls)) - {"__weakref__", "__dict__"}),
    }

found = {}
for room in ("agentd", "agentd_client", "agentctl"):
    for item in pkgutil.walk_packages(importlib.import_module(room).__path__, room + "."):
        if "__main__" in item.name or ".functions" in item.name:
            continue
        try:
            module = importlib.import_module(item.name)
        except ImportError:
            continue
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == item.name and dataclasses.is_dataclass(cls):
                found[f"{item.name}.{cls.__qualname__}"] = seen(cls)
print(json.dumps(found, default=repr))
"""


def _every_class(maker: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SEEN_OF_ALL, maker],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_class_of_the_project_looks_as_the_library_would_have_made_it() -> None:
    ours, theirs = _every_class("ours"), _every_class("theirs")
    assert len(ours) > 150
    assert ours == theirs


@quickdata.dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """All that our classes use."""

    KIND: ClassVar[str] = "whole"

    name: str
    size: float = 3
    labels: dict[str, str] = field(default_factory=dict)
    key: int = field(default=0, repr=False, compare=False)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    """All that our classes use."""

    KIND: ClassVar[str] = "whole"

    name: str
    size: float = 3
    labels: dict[str, str] = field(default_factory=dict)
    key: int = field(default=0, repr=False, compare=False)


BOTH = pytest.mark.parametrize("cls", [Ours, Theirs])


@BOTH
def test_instances_compare_and_hash_by_their_fields(cls: Any) -> None:
    one, same, other = cls(name="a", key=1), cls(name="a", key=2), cls(name="b")
    assert one == same
    assert one != other
    assert one != "a"
    assert len({cls(name="a", labels=(), key=1), cls(name="a", labels=(), key=2)}) == 1
    with pytest.raises(TypeError, match="unhashable type: 'dict'"):
        hash(one)


def test_instances_with_the_same_object_that_equals_nothing_are_equal() -> None:
    """As with the standard library's before Python 3.13, which compares fields, not tuples of them."""
    nan = float("nan")
    assert Ours(name="a", size=nan) == Ours(name="a", size=nan)


@BOTH
def test_an_instance_shows_its_fields(cls: Any) -> None:
    assert repr(cls(name="a", key=1)) == f"{cls.__name__}(name='a', size=3, labels={{}})"
    loop = cls(name="a")
    loop.labels["self"] = loop
    assert repr(loop) == f"{cls.__name__}(name='a', size=3, labels={{'self': ...}})"


@BOTH
def test_a_default_is_made_for_each_instance(cls: Any) -> None:
    cls(name="a").labels["x"] = "y"
    assert cls(name="b").labels == {}
    assert cls.KIND == "whole"


@BOTH
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "missing 1 required keyword-only argument: 'name'"),
        ({"name": "a", "nmae": "b"}, "got an unexpected keyword argument 'nmae'"),
    ],
)
def test_wrong_arguments_are_named(cls: Any, arguments: dict[str, str], problem: str) -> None:
    with pytest.raises(TypeError, match=problem) as caught:
        cls(**arguments)
    assert str(caught.value).startswith(f"{cls.__name__}.__init__()")


@BOTH
def test_a_frozen_instance_changes_by_replacement_only(cls: Any) -> None:
    one = cls(name="a")
    assert replace(one, name="b") == cls(name="b")
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'name'"):
        one.name = "b"
    with pytest.raises((FrozenInstanceError, TypeError)):  # theirs stumbles where the class has slots
        one.new = "b"
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'name'"):
        del one.name


@BOTH
def test_an_instance_survives_copies_and_pickling(cls: Any) -> None:
    one = cls(name="a", labels={"x": "y"})
    for again in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert again == one
        assert again is not one
    assert dataclasses.asdict(one) == {"name": "a", "size": 3, "labels": {"x": "y"}, "key": 0}


@pytest.mark.parametrize("maker", [quickdata.dataclass, dataclasses.dataclass])
def test_what_a_class_defines_itself_is_kept(maker: Any) -> None:
    class Odd:
        number: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Odd) and self.number % 2 == other.number % 2

        def __hash__(self) -> int:
            return self.number % 2

        def __repr__(self) -> str:
            return f"<{self.number}>"

    made = maker(frozen=True)(Odd)
    assert len({made(1), made(3), made(2)}) == 2
    assert repr(made(5)) == "<5>"


@pytest.mark.parametrize("maker", [quickdata.dataclass, dataclasses.dataclass])
def test_changing_data_is_finished_by_its_own_method(maker: Any) -> None:
    class Found:
        name: str
        path: str = field(init=False)
        seen: list[str] = field(init=False, default_factory=list)

        def __post_init__(self) -> None:
            self.path = f"/{self.name}"

    found = maker(Found)("a")
    found.name = "b"
    assert (found.name, found.path, found.seen) == ("b", "/a", [])
    with pytest.raises(TypeError, match="unhashable"):
        hash(found)


def test_a_class_of_the_library_may_inherit_of_ours_and_the_other_way_round() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Theirs2(Ours):
        more: int = 1

    @quickdata.dataclass(frozen=True, kw_only=True)
    class Ours2(Theirs):
        more: int = 1

    assert Theirs2(name="a", more=2).more == Ours2(name="a", more=2).more == 2
    with pytest.raises(TypeError, match="cannot inherit non-frozen dataclass from a frozen one"):
        dataclasses.dataclass(type("Thawed", (Ours,), {}))


def test_a_plain_subclass_of_frozen_data_may_have_attributes_of_its_own() -> None:
    class Plain(Ours):
        def __init__(self) -> None:
            super().__init__(name="a")
            self.more = 1

    plain = Plain()
    assert (plain.name, plain.more) == ("a", 1)
    with pytest.raises(FrozenInstanceError):
        plain.name = "b"  # type: ignore[misc]


def test_the_constructor_is_written_when_it_is_first_asked_for() -> None:
    @quickdata.dataclass(frozen=True, slots=True)
    class Late:
        value: int

    assert not inspect.isfunction(vars(Late)["__init__"])
    assert Late(1) == Late(value=1)
    assert inspect.isfunction(vars(Late)["__init__"])
    theirs = dataclasses.make_dataclass("Late", [("value", "int")])
    assert inspect.signature(Late) == inspect.signature(theirs)
