"""What workers see in their environment, over shapes of a run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Controller, Fleet, agentctl, fleet, read_json_lines, write_script

DUMP = (
    "import json, os, pathlib, sys",
    "out = pathlib.Path(sys.argv[1])",
    "name = f\"{os.environ['RANK']}-{os.getpid()}.json\"",
    "(out / name).write_text(json.dumps({'env': dict(os.environ), 'cwd': os.getcwd(), 'argv': sys.argv}))",
)
TORCH_CONTRACT = {
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS",
    "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_ERROR_FILE",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "OMP_NUM_THREADS",
    "PYTHONUNBUFFERED",
}
AGENTD_CONTRACT = {
    "AGENTD_RUN_ID",
    "AGENTD_INCARNATION",
    "AGENTD_NODE_ID",
    "AGENTD_ROUND",
    "AGENTD_ROUND_FILE",
    "AGENTD_GROUP_TOKEN",
}


def seen(folder: Path) -> list[dict[str, str]]:
    """Every worker's environment, by rank."""
    found: list[dict[str, Any]] = read_json_lines(folder)
    return sorted((one["env"] for one in found), key=lambda env: int(env["RANK"]))


def column(environments: list[dict[str, str]], name: str) -> list[str]:
    return [environment[name] for environment in environments]


def run(nodes: Fleet, folder: Path, *flags: str, targets: str = "") -> list[dict[str, str]]:
    folder.mkdir()
    script = write_script(folder.parent / "dump.py", *DUMP)
    done = agentctl("run", "--nodes", targets or nodes.targets(), *flags, str(script), str(folder))
    assert done.returncode == 0, done.stderr
    return seen(folder)


def test_one_node_with_four_workers(tmp_path: Path) -> None:
    with fleet(tmp_path, "a") as nodes:
        workers = run(
            nodes, tmp_path / "out", "--nproc-per-node", "4", "--run-id", "one", "--max-restarts", "7"
        )
    assert len(workers) == 4
    for env in workers:
        assert set(env) >= TORCH_CONTRACT | AGENTD_CONTRACT
        assert env["TORCHELASTIC_USE_AGENT_STORE"] == "False"
        assert env["TORCHELASTIC_RUN_ID"] == env["AGENTD_RUN_ID"] == "one"
        assert (env["TORCHELASTIC_MAX_RESTARTS"], env["TORCHELASTIC_RESTART_COUNT"]) == ("7", "0")
        assert (env["OMP_NUM_THREADS"], env["PYTHONUNBUFFERED"]) == ("1", "1")
        assert (env["AGENTD_NODE_ID"], env["AGENTD_ROUND"], env["ROLE_NAME"]) == ("a", "1", "default")
        assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"], env["ROLE_WORLD_SIZE"]) == ("4", "4", "4")
        assert (env["GROUP_RANK"], env["GROUP_WORLD_SIZE"]) == ("0", "1")
    for name in ("RANK", "LOCAL_RANK", "ROLE_RANK"):
        assert column(workers, name) == ["0", "1", "2", "3"]
    assert len(set(column(workers, "MASTER_PORT"))) == 1
    assert len(set(column(workers, "TORCHELASTIC_ERROR_FILE"))) == 4


def test_three_nodes_with_two_workers_each(tmp_path: Path) -> None:
    with fleet(tmp_path, "a", "b", "c") as nodes:
        workers = run(nodes, tmp_path / "out", "--nproc-per-node", "2")
    assert column(workers, "RANK") == ["0", "1", "2", "3", "4", "5"]
    assert column(workers, "LOCAL_RANK") == ["0", "1"] * 3
    assert column(workers, "GROUP_RANK") == ["0", "0", "1", "1", "2", "2"]
    assert column(workers, "AGENTD_NODE_ID") == ["a", "a", "b", "b", "c", "c"]
    assert set(column(workers, "WORLD_SIZE")) == {"6"}
    assert set(column(workers, "GROUP_WORLD_SIZE")) == {"3"}
    assert len(set(zip(column(workers, "MASTER_ADDR"), column(workers, "MASTER_PORT"), strict=True))) == 1


def test_two_roles_and_unequal_sizes_get_right_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    script = write_script(tmp_path / "dump.py", *DUMP)
    with fleet(tmp_path, "a", "b") as nodes:
        spec = tmp_path / "run.toml"
        spec.write_text(
            f"""
            run_id = "roles"
            nodes = ["{nodes["a"].target}", "{nodes["b"].target}"]

            [[roles]]
            role = "trainer"
            local_world_size = 2
            local_world_size_by_node = {{ "{nodes["b"].target}" = 3 }}
            command = {{ entrypoint = "{script}", arguments = ["{folder}"] }}

            [[roles]]
            role = "evaluator"
            nodes = ["{nodes["b"].target}"]
            local_world_size = 1
            command = {{ entrypoint = "{script}", arguments = ["{folder}"] }}
            """
        )
        done = agentctl("run", "--spec", str(spec))
        assert done.returncode == 0, done.stderr
    workers = seen(folder)
    assert column(workers, "RANK") == ["0", "1", "2", "3", "4", "5"]
    assert set(column(workers, "WORLD_SIZE")) == {"6"}
    assert set(column(workers, "GROUP_WORLD_SIZE")) == {"3"}
    trainers = [env for env in workers if env["ROLE_NAME"] == "trainer"]
    evaluators = [env for env in workers if env["ROLE_NAME"] == "evaluator"]
    assert column(trainers, "ROLE_RANK") == ["0", "1", "2", "3", "4"]
    assert column(trainers, "LOCAL_WORLD_SIZE") == ["2", "2", "3", "3", "3"]
    assert set(column(trainers, "ROLE_WORLD_SIZE")) == {"5"}
    assert [(env["ROLE_RANK"], env["ROLE_WORLD_SIZE"], env["AGENTD_NODE_ID"]) for env in evaluators] == [
        ("0", "1", "b")
    ]


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--env", "COLOUR=blue"], "COLOUR", "blue"),
        (["--env-pass", "PASSED_*"], "PASSED_ON", "yes"),
        ([], "NCCL_DEBUG_TEST", "info"),
    ],
    ids=["env", "env-pass", "default pass over TCP"],
)
def test_variables_of_the_caller_reach_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], name: str, value: str
) -> None:
    with fleet(tmp_path, "a") as nodes:
        monkeypatch.setenv("PASSED_ON", "yes")
        monkeypatch.setenv("NCCL_DEBUG_TEST", "info")
        monkeypatch.setenv("SECRET_OF_THE_CALLER", "hidden")
        (worker,) = run(nodes, tmp_path / "out", *flags)
    assert worker[name] == value
    assert "SECRET_OF_THE_CALLER" not in worker


def test_the_daemons_own_variables_stay_out_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "GRPC_TRACE",
        "NOTIFY_SOCKET",
        "LISTEN_PID",
        "WATCHDOG_USEC",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
    ):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("AGENTD_LOG_FORMAT", "json")
    with fleet(tmp_path, "a") as nodes:
        (worker,) = run(nodes, tmp_path / "out")
    assert not [name for name in worker if name.startswith(("GRPC_", "LISTEN_", "WATCHDOG_", "NOTIFY_"))]
    assert {name for name in worker if name.startswith("AGENTD_")} == AGENTD_CONTRACT


def test_runs_at_once_have_their_own_directory_port_and_environment(tmp_path: Path) -> None:
    script = write_script(
        tmp_path / "together.py", *DUMP, "import time",
        "while len(list(out.parent.glob('out-*/*.json'))) < 2: time.sleep(0.02)",
    )  # fmt: skip
    places = [tmp_path / "x", tmp_path / "y"]
    with fleet(tmp_path, "a") as nodes, contextlib.ExitStack() as stack:
        controllers = []
        for place in places:
            place.mkdir()
            folder = tmp_path / f"out-{place.name}"
            folder.mkdir()
            command = [
                "run",
                "--nodes",
                nodes.targets(),
                "--workdir",
                str(place),
                "--env",
                f"OWN={place.name}",
            ]
            controllers.append(
                stack.enter_context(Controller(*command, str(script), str(folder), root=tmp_path))
            )
        assert [controller.wait() for controller in controllers] == [0, 0]
    first, second = (read_json_lines(tmp_path / f"out-{place.name}")[0] for place in places)
    assert [first["cwd"], second["cwd"]] == [str(place) for place in places]
    assert [first["env"]["OWN"], second["env"]["OWN"]] == ["x", "y"]
    for name in ("MASTER_PORT", "AGENTD_RUN_ID", "AGENTD_GROUP_TOKEN", "TORCHELASTIC_ERROR_FILE"):
        assert first["env"][name] != second["env"][name]
