"""From flags and files to the spec of a run; everything that is wrong is refused before any network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import pytest

from agentctl import torchrun
from agentctl.hosts import Nodes
from agentctl.spec import SpecFlags, Wish, build_wish
from agentctl.specfile import parse_spec
from agentd.api.types import EntrypointKind, IsolationPolicy, LocalWorldSizeRule, RendezvousSpec


def wish(nodes: Nodes | None = None, **given: Any) -> Wish:
    return build_wish(SpecFlags(**{"script": "train.py", **given}), nodes or Nodes())


def test_a_script_runs_here_with_this_python_as_one_worker() -> None:
    made = wish(script_args=("--lr", "1"))
    (role,) = made.spec.roles
    assert made.targets == ()
    assert made.spec.nodes == ()
    assert (role.command.entrypoint, role.command.arguments) == ("train.py", ("--lr", "1"))
    assert (role.command.kind, role.command.python) == (EntrypointKind.SCRIPT, sys.executable)
    assert role.command.working_directory == str(Path.cwd())
    assert (role.local_world_size, made.spec.max_restarts) == (1, 0)
    assert made.spec.run_id.startswith("train-")


def test_every_flag_reaches_the_spec() -> None:
    made = wish(
        Nodes(targets=("a", "b:7460")),
        run_id="job",
        role="trainer",
        nnodes=(1, 3),
        nproc="gpu",
        max_restarts=5,
        monitor_interval=0.5,
        stop_grace=7.0,
        conf={"join_timeout": "60", "last_call_timeout": "2", "timeout": "30", "keep_alive_max_attempt": "3"},
        endpoint="h:7460",
        master_addr="10.0.0.1",
        master_port=29500,
        log_dir="logs",
        python="/py",
        workdir="/w",
        env={"A": "b"},
        devices=(0, 1),
        labels={"team": "x"},
        no_rejoin=True,
        on_isolation=IsolationPolicy.STOP,
    )
    spec, (role,) = made.spec, made.spec.roles
    assert (spec.run_id, spec.nodes, made.hub) == ("job", ("a", "b"), "h")
    assert spec.rendezvous == RendezvousSpec(
        min_members=1, max_members=3, join_timeout=60, last_call=2, hub_timeout=30, lease=3
    )
    assert (spec.max_restarts, spec.monitor_interval, spec.stop_grace, spec.no_rejoin) == (5, 0.5, 7.0, True)
    assert spec.on_isolation is IsolationPolicy.STOP
    assert (dict(spec.labels), dict(role.env), role.devices) == ({"team": "x"}, {"A": "b"}, (0, 1))
    assert (role.role, role.local_world_size) == ("trainer", LocalWorldSizeRule.GPU)
    assert (role.master_addr, role.master_port) == ("10.0.0.1", 29500)
    assert (role.command.python, role.command.working_directory) == ("/py", "/w")
    assert role.log_dir == str(Path.cwd() / "logs")


@pytest.mark.parametrize(
    ("given", "kind", "python"),
    [
        ({"module": True}, EntrypointKind.MODULE, sys.executable),
        ({"no_python": True}, EntrypointKind.EXECUTABLE, ""),
    ],
)
def test_modules_and_executables(given: dict[str, Any], kind: EntrypointKind, python: str) -> None:
    command = wish(**given).spec.roles[0].command
    assert (command.kind, command.python) == (kind, python)


def test_slots_of_a_hostfile_are_the_workers_unless_a_flag_says_otherwise() -> None:
    nodes = Nodes(targets=("a", "b"), slots={"a": 4})
    assert dict(wish(nodes).spec.roles[0].local_world_size_by_node) == {"a": 4}
    overruled = wish(nodes, nproc=2).spec.roles[0]
    assert (overruled.local_world_size, dict(overruled.local_world_size_by_node)) == (2, {})
    alone = wish(Nodes(targets=("a",), slots={"a": 4})).spec.roles[0]
    assert (alone.local_world_size, dict(alone.local_world_size_by_node)) == (4, {})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"script": None}, "name a script"),
        ({"script": None, "module": True}, "name a module"),
        ({"module": True, "no_python": True}, "excludes --no-python"),
        ({"run_id": "../../etc"}, "--run-id"),
        ({"run_id": ""}, "--run-id"),
        ({"role": "a/b"}, "--role"),
        ({"endpoint": "a b"}, "--rdzv-endpoint"),
        ({"conf": {"join_timeout": "soon"}}, "join_timeout"),
        ({"conf": {"jion_timeout": "5"}}, "jion_timeout"),
        ({"spec_file": "x.toml"}, "one too many"),
        ({"controller_lease": 0.2}, "--controller-lease: 0.2 s is not a time from 1 s"),
        ({"stop_grace": 1e9}, "--stop-grace: .* to a year"),
    ],
)
def test_a_wrong_flag_is_a_usage_error_that_names_it(given: dict[str, Any], says: str) -> None:
    with pytest.raises(click.UsageError, match=says):
        wish(**given)


TWO_ROLES = """
run_id = "roles"
nodes = ["a", "b:7460"]
max_restarts = 2
stop_grace = 5

[rendezvous]
min_members = 2

[[roles]]
role = "trainer"
local_world_size = 2
local_world_size_by_node = { "b" = "gpu" }
devices = "0-1"
command = { entrypoint = "train.py", arguments = ["-v"], python = "/py" }

[[roles]]
role = "evaluator"
nodes = ["b"]
env = { MODE = "eval" }
command = { entrypoint = "eval", kind = "executable" }
"""


def test_a_file_describes_several_roles(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TWO_ROLES)
    made = wish(script=None, spec_file=str(path), env={"A": "b"}, max_restarts=9)
    trainer, evaluator = made.spec.roles
    assert (made.spec.run_id, made.spec.nodes, made.targets) == ("roles", ("a", "b"), ("a", "b"))
    assert (made.spec.max_restarts, made.spec.stop_grace, made.spec.rendezvous.min_members) == (9, 5.0, 2)
    assert dict(trainer.local_world_size_by_node) == {"b": LocalWorldSizeRule.GPU}
    assert (trainer.devices, trainer.command.python) == ((0, 1), "/py")
    assert (evaluator.nodes, evaluator.command.kind) == (("b",), EntrypointKind.EXECUTABLE)
    assert dict(evaluator.env) == {"MODE": "eval", "A": "b"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = [", "not TOML"),
        ("run_id = 'r'", "roles"),
        ("[[roles]]\ncommand = {}", r"roles\[0\].command.entrypoint"),
        ("[[roles]]\ncommand = { entrypoint = 'x', kind = 'shell' }", "kind"),
        ("[[roles]]\nlocal_world_size = 0\ncommand = { entrypoint = 'x' }", "local_world_size"),
        ("[[roles]]\nnproc = 2\ncommand = { entrypoint = 'x' }", r"roles\[0\].nproc: there is no such field"),
        ("max_restarts = true\n[[roles]]\ncommand = { entrypoint = 'x' }", "max_restarts"),
        ("stop_grace = -1\n[[roles]]\ncommand = { entrypoint = 'x' }", "stop_grace"),
        ("nodes = ['a b']\n[[roles]]\ncommand = { entrypoint = 'x' }", "nodes"),
        ("roles = 3", "list of tables"),
    ],
)
def test_a_wrong_file_names_the_field(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_spec(text)


def test_a_role_of_a_node_that_is_not_in_the_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TWO_ROLES)
    with pytest.raises(click.UsageError, match="names node b"):
        wish(Nodes(targets=("a", "c")), script=None, spec_file=str(path))


def test_flags_of_one_role_and_a_file_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TWO_ROLES)
    with pytest.raises(click.UsageError, match="--nproc-per-node belongs to one role"):
        wish(script=None, spec_file=str(path), nproc=2)


def test_torchruns_flags_without_a_meaning_here_are_answered() -> None:
    said = torchrun.notes(
        torchrun.RendezvousFlags(
            backend="c10d", conf={"is_host": "1"}, node_rank="1", local_addr="x", start_method="fork",
            endpoint="a", standalone=True,
        )
    )  # fmt: skip
    for flag in ("--rdzv-backend", "--rdzv-conf is_host", "--node-rank", "--local-addr", "--start-method"):
        assert any(flag in note for note in said), flag
    assert torchrun.notes(torchrun.RendezvousFlags(node_rank="0")) == []
