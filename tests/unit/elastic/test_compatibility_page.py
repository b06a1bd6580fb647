"""docs/torch-compatibility.md is true: what it calls there is there, and nothing of torch is forgotten."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import warnings
from collections import Counter

import pytest

from tests.support import compatibility
from tests.support.compatibility import OURS, PAGE, REPO, STATUSES, TORCH, Row, Section

SECTIONS = compatibility.sections(PAGE.read_text(encoding="utf-8"))
MODULES = [section for section in SECTIONS if section.torch]
FACTS = {section.title: section for section in SECTIONS if not section.torch}
PRESENT = [section for section in MODULES if any(row.status != "absent" for row in section.rows)]

# Tests of torch's own modules import them; etcd's needs urllib3, which nobody has to have.
NEEDS_MORE = {f"{TORCH}.rendezvous.etcd_rendezvous_backend"}


def ids(section: Section) -> str:
    return section.torch.removeprefix(f"{TORCH}.")


def test_every_row_has_a_status_and_says_why_it_is_not_the_same() -> None:
    rows = [row for section in SECTIONS for row in section.rows]
    assert [str(row) for row in rows if row.status not in STATUSES] == []
    assert [str(row) for row in rows if row.status == "better" and len(row.note) < 15] == []
    # A reason that convinces takes more than a word, and says what to do instead.
    assert [str(row) for row in rows if row.status == "absent" and len(row.note) < 35] == []


def test_no_name_has_two_rows() -> None:
    rows = Counter((row.section, row.name) for section in SECTIONS for row in section.rows)
    assert [name for name, count in rows.items() if count > 1] == []


@pytest.mark.parametrize("section", PRESENT, ids=ids)
def test_what_is_called_same_or_better_is_there(section: Section) -> None:
    missing = []
    for row in section.rows:
        if row.status != "absent":
            try:
                compatibility.find(section.ours, row.name)
            except (ImportError, AttributeError) as error:
                missing.append(f"{row.name}: {error}")
    assert missing == []


@pytest.mark.parametrize("section", [section for section in MODULES if section.ours], ids=ids)
def test_what_is_called_absent_is_absent(section: Section) -> None:
    there = []
    for row in section.rows:
        if row.status == "absent":
            try:
                compatibility.find(section.ours, row.name)
                there.append(row.name)
            except (ImportError, AttributeError):
                pass
    assert there == []


SOURCE = "".join(path.read_text(encoding="utf-8") for path in sorted((REPO / "agentd").rglob("*.py")))


@pytest.mark.parametrize("title", ["Environment of workers", "Environment of the agent"])
def test_variables_that_are_there_are_in_the_source(title: str) -> None:
    of_torch = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE"}  # read by torch's handler, which runs as it is
    named = {row.name for row in FACTS[title].rows if row.status != "absent"} - of_torch
    assert {name for name in named if not re.search(rf"\b{name}\b", SOURCE)} == set()


@pytest.mark.parametrize("title", ["Events", "Metrics"])
def test_events_and_metrics_that_are_there_are_in_the_source(title: str) -> None:
    rows = [row for row in FACTS[title].rows if row.status != "absent" and "." in row.name]
    assert rows
    last = {row.name.rpartition(".")[2] for row in rows} - {"<state>", "ms"}
    assert {name for name in last if not re.search(rf"\b{name}\b", SOURCE)} == set()


# With torch itself.


def torchs_modules() -> list[str]:
    """Every public module of torch's elastic library that can be imported here."""
    package = importlib.import_module(TORCH)
    found = [module.name for module in pkgutil.walk_packages(package.__path__, f"{TORCH}.")]
    return [name for name in found if "._" not in name and name not in NEEDS_MORE]


def row_of(module: str, name: str, value: object = None) -> Row | None:
    """The row where the name is defined; a value that does not know where has it in this module or below."""
    home = str(getattr(value, "__module__", ""))
    rows = [(s.torch, row) for s in MODULES for row in s.rows if row.name == name]
    if home.startswith(TORCH):
        rows = [(torch, row) for torch, row in rows if torch == home]
    return next((row for torch, row in rows if f"{torch}.".startswith((f"{module}.", f"{home}."))), None)


@pytest.fixture
def quiet_torch() -> None:
    """torch warns of its own modules when they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in torchs_modules():
            importlib.import_module(name)
        importlib.import_module("torch.numa.binding")
        importlib.import_module("torch.distributed.launcher.api")


@pytest.mark.torch
@pytest.mark.usefixtures("quiet_torch")
def test_every_public_name_of_torch_has_a_row() -> None:
    missing = []
    extra = ["torch.numa.binding", "torch.distributed.launcher.api"]
    for module in torchs_modules() + extra:
        for name, value in compatibility.public_names(module).items():
            row = row_of(module, name, value)
            if row is None:
                missing.append(f"{module}: {name}")
            elif row.status != "absent" and inspect.isclass(value) and value.__module__ == module:
                members = compatibility.public_members(value)
                missing += [
                    f"{module}: {name}.{m}" for m in sorted(members) if not row_of(module, f"{name}.{m}")
                ]
    assert missing == []


@pytest.mark.torch
@pytest.mark.usefixtures("quiet_torch")
def test_no_row_names_what_torch_does_not_have() -> None:
    invented = []
    for section in MODULES:
        if section.torch in NEEDS_MORE:
            continue
        for row in section.rows:
            try:
                compatibility.find(section.torch, row.name)
            except (ImportError, AttributeError):
                invented.append(str(row))
    assert invented == []


@pytest.mark.torch
@pytest.mark.usefixtures("quiet_torch")
def test_what_torchs_packages_offer_ours_offer_too() -> None:
    missing = []
    for package in torchs_modules():
        if not hasattr(importlib.import_module(package), "__path__"):
            continue
        for name, value in compatibility.offered_names(package).items():
            row = row_of(package, name, value)
            if row is not None and row.status == "absent":
                continue
            try:
                compatibility.find(package.replace(TORCH, OURS), name)
            except (ImportError, AttributeError) as error:
                missing.append(str(error))
    assert missing == []


@pytest.mark.torch
@pytest.mark.usefixtures("quiet_torch")
@pytest.mark.parametrize("section", PRESENT, ids=ids)
def test_what_can_be_called_is_called_as_in_torch(section: Section) -> None:
    wrong = []
    for row in section.rows:
        if row.status == "absent":
            continue
        theirs = compatibility.find(section.torch, row.name)
        try:
            ours = compatibility.find(section.ours, row.name)
        except (ImportError, AttributeError):
            continue  # another test names it
        if callable(theirs) or isinstance(theirs, (staticmethod, classmethod)):
            problem = compatibility.differing(theirs, ours)
            if problem and not (row.status == "better" and "signature" in row.note):
                wrong.append(f"{row.name}: {problem}")
    assert wrong == []
