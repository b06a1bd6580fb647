"""What a run may ask to be preloaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentd.api import convert
from agentd.api.errors import InvalidSpec, LimitExceeded
from agentd.api.types import Command, RoleSpec, RunSpec
from agentd.core.specs import MAX_PRELOADED, differing_fields, validate

SPEC = RunSpec(run_id="r", roles=(RoleSpec(command=Command(entrypoint="x.py")),))


@pytest.mark.parametrize("names", [("torch",), ("my_project.models", "größe._x"), ()])
def test_modules_are_named_as_imports_name_them(names: tuple[str, ...]) -> None:
    validate(replace(SPEC, preload=names))


@pytest.mark.parametrize("name", ["", "a-b", "a b", ".a", "a..b", "import os; x", "a" * 300, "a/b", "a\0"])
def test_what_no_import_could_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec, match="preload: "):
        validate(replace(SPEC, preload=("torch", name)))


def test_there_is_a_limit_of_modules() -> None:
    with pytest.raises(LimitExceeded, match="preload"):
        validate(replace(SPEC, preload=("m",) * (MAX_PRELOADED + 1)))


def test_standby_without_preload_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="standby"):
        validate(replace(SPEC, standby=True))


def test_both_go_over_the_wire_and_tell_specs_apart() -> None:
    spec = replace(SPEC, preload=("torch", "my.package"), standby=True)
    assert convert.run_spec_from_message(convert._run_spec_to_message(spec)) == spec
    assert differing_fields(spec, SPEC) == ("preload", "standby")
