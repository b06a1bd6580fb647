"""Admission: what a node resolves before it starts anything, and how it names what it lacks."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from agentd.api.errors import LimitExceeded, NoSuchDevice, ProgramUnusable
from agentd.api.types import Command, EntrypointKind, LocalWorldSizeRule, RoleSpec, RunSpec
from agentd.groups import admission
from agentd.groups.admission import Machine, RolePlan, plan_node, worker_environment
from agentd.procs.node import cpu_count

KIND = EntrypointKind


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(node_id="n1", environ={"PATH": os.environ["PATH"]}, home=str(tmp_path), worker_limit=100)


def plan(
    machine: Machine, command: Command, passed: Mapping[str, str] | None = None, **role: object
) -> RolePlan:
    spec = RunSpec(run_id="job", roles=(RoleSpec(command=command, **role),))  # type: ignore[arg-type]
    (planned,) = plan_node(spec, "", passed or {}, machine)
    return planned


def touch(path: Path, text: str = "", mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_script_runs_on_the_named_interpreter_unbuffered(machine: Machine, tmp_path: Path) -> None:
    touch(tmp_path / "train.py")
    command = Command(entrypoint="train.py", arguments=("--lr", "${local_rank}"), python=sys.executable)
    planned = plan(machine, command)
    assert planned.argv == (sys.executable, "-u", "train.py", "--lr", "${local_rank}")
    assert planned.cwd == str(tmp_path)


def test_a_module_runs_with_dash_m(machine: Machine) -> None:
    planned = plan(machine, Command(entrypoint="pkg.mod", kind=KIND.MODULE, python=sys.executable))
    assert planned.argv == (sys.executable, "-u", "-m", "pkg.mod")


def test_the_interpreter_defaults_to_python3_on_the_workers_path(machine: Machine, tmp_path: Path) -> None:
    own = tmp_path / "bin"
    own.mkdir()
    touch(own / "python3", mode=0o755)
    planned = plan(machine, Command(entrypoint="m", kind=KIND.MODULE), env={"PATH": str(own)})
    assert planned.argv[0] == str(own / "python3")


def test_an_executable_is_looked_up_or_taken_by_its_path(machine: Machine, tmp_path: Path) -> None:
    touch(tmp_path / "tool", mode=0o755)
    assert plan(machine, Command(entrypoint="./tool", kind=KIND.EXECUTABLE)).argv == (f"{tmp_path}/./tool",)
    assert plan(machine, Command(entrypoint="sh", kind=KIND.EXECUTABLE)).argv[0].endswith("/sh")


UNUSABLE = {
    "no script": (Command(entrypoint="none.py", python=sys.executable), "none.py"),
    "no interpreter": (Command(entrypoint="here.py", python="/no/python"), "/no/python"),
    "no interpreter on PATH": (Command(entrypoint="here.py", python="python9.9"), "python9.9"),
    "interpreter is a directory": (Command(entrypoint="here.py", python="/usr"), "/usr"),
    "script is a directory": (Command(entrypoint="folder", python=sys.executable), "folder"),
    "no exec bit": (Command(entrypoint="./here.py", kind=KIND.EXECUTABLE), "here.py"),
    "no program": (Command(entrypoint="no-such-tool", kind=KIND.EXECUTABLE), "no-such-tool"),
    "no directory": (Command(entrypoint="here.py", working_directory="/no/dir"), "/no/dir"),
    "file as directory": (Command(entrypoint="m", working_directory="/etc/passwd"), "/etc/passwd"),
    "path too long": (Command(entrypoint="x" * 5000, python=sys.executable), "xxx"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_is_missing_is_named_with_node_and_path(machine: Machine, tmp_path: Path, case: str) -> None:
    touch(tmp_path / "here.py")
    (tmp_path / "folder").mkdir()
    command, path = UNUSABLE[case]
    with pytest.raises(ProgramUnusable) as refusal:
        plan(machine, command)
    assert refusal.value.facts["node"] == "n1"
    assert path in refusal.value.facts["path"]


def test_a_directory_with_a_main_is_a_script(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    touch(tmp_path / "app" / "__main__.py")
    assert plan(machine, Command(entrypoint="app", python=sys.executable)).argv[2] == "app"


def test_a_log_root_below_a_file_is_refused(machine: Machine, tmp_path: Path) -> None:
    touch(tmp_path / "file")
    command = Command(entrypoint="m", kind=KIND.MODULE, python=sys.executable)
    with pytest.raises(ProgramUnusable, match="no directory"):
        plan(machine, command, log_dir=str(tmp_path / "file" / "logs"))
    assert plan(machine, command, log_dir=str(tmp_path / "new" / "logs")).log_root


MODULE = Command(entrypoint="m", kind=KIND.MODULE, python=sys.executable)


def test_more_workers_than_the_node_can_have_are_refused_with_the_limit(machine: Machine) -> None:
    with pytest.raises(LimitExceeded, match="100 on this node"):
        plan(machine, MODULE, local_world_size=101)
    two = RunSpec(
        run_id="job",
        roles=tuple(RoleSpec(role=name, command=MODULE, local_world_size=60) for name in ("a", "b")),
    )
    with pytest.raises(LimitExceeded, match="120 workers"):
        plan_node(two, "", {}, machine)


@pytest.mark.parametrize(
    ("rule", "devices", "gpus", "expected"),
    [
        (LocalWorldSizeRule.CPU, (), 4, cpu_count()),
        (LocalWorldSizeRule.AUTO, (), 0, cpu_count()),
        (LocalWorldSizeRule.AUTO, (), 4, 4),
        (LocalWorldSizeRule.GPU, (), 4, 4),
        (LocalWorldSizeRule.GPU, (2, 3), 4, 2),
    ],
)
def test_a_rule_is_counted_on_the_node(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    rule: LocalWorldSizeRule,
    devices: tuple[int, ...],
    gpus: int,
    expected: int,
) -> None:
    monkeypatch.setattr(admission, "gpu_count", lambda _env: gpus)
    assert plan(machine, MODULE, local_world_size=rule, devices=devices).local_world_size == expected


def test_gpus_are_refused_where_there_are_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "gpu_count", lambda _env: 0)
    with pytest.raises(NoSuchDevice):
        plan(machine, MODULE, local_world_size=LocalWorldSizeRule.GPU)


def test_the_environment_is_merged_in_the_documented_order() -> None:
    own = {
        "KEPT": "own",
        "A": "own",
        "B": "own",
        "GRPC_VERBOSITY": "x",
        "AGENTD_STATE_DIR": "x",
        "NOTIFY_SOCKET": "x",
        "LISTEN_FDS": "1",
        "WATCHDOG_USEC": "x",
        "INVOCATION_ID": "x",
        "JOURNAL_STREAM": "x",
    }
    passed = {"A": "passed", "B": "passed", "GRPC_TRACE": "callers"}
    role = RoleSpec(command=MODULE, env={"B": "role"}, devices=(1, 3))
    assert worker_environment(own, passed, role) == {
        "KEPT": "own",
        "A": "passed",
        "B": "role",
        "GRPC_TRACE": "callers",
        "CUDA_VISIBLE_DEVICES": "1,3",
    }
