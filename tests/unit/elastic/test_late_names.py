"""Public names come from their homes when they are first asked for: all are there, nothing else is loaded."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

LATE = ("agentd.elastic", "agentd.elastic.multiprocessing", "agentd.elastic.timer")


def loaded_by(statement: str) -> set[str]:
    """The modules of agentd that a fresh interpreter has after it."""
    program = f"import sys; {statement}; print(*[name for name in sys.modules if name.startswith('agentd')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("package", LATE)
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("package", LATE)
def test_a_name_is_looked_for_once(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is vars(module)[name]


@pytest.mark.parametrize("package", LATE)
def test_an_unknown_name_is_an_attribute_error_that_names_the_package(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        importlib.import_module(package).nothing  # noqa: B018


def test_a_worker_that_reports_its_errors_or_sets_a_timer_loads_no_agent() -> None:
    loaded = loaded_by("from agentd.elastic import record; from agentd.elastic.timer import FileTimerClient")
    assert "agentd.elastic.multiprocessing.errors.recording" in loaded
    assert "agentd.elastic.timer.file_client" in loaded
    too_much = ("agentd.elastic.agent", "agentd.elastic.multiprocessing.context", "agentd.procs.spawn")
    assert loaded.isdisjoint(too_much)


def test_who_imports_the_library_alone_reaches_its_rooms() -> None:
    loaded = loaded_by("import agentd.elastic; agentd.elastic.agent.server.LocalElasticAgent")
    assert "agentd.elastic.agent.server.local_elastic_agent" in loaded
