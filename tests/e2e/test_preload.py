"""Workers of a run with `--preload`: forked in every round, ended as others, and nothing is left of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fleet import Fleet, descendants, fleet, is_gone, read_json_lines, write_script
from tests.support.training import SCRIPT, parameters
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

PATIENCE_S = 60.0
ZYGOTE = "agentd-zygote"

# Says what it has found, and waits for its end.
WORKER = (
    "import json, os, pathlib, sys, time",
    "preloaded = 'decimal' in sys.modules",
    "rank, round = os.environ['RANK'], os.environ['AGENTD_ROUND']",
    "found = {'rank': int(rank), 'round': int(round), 'preloaded': preloaded, 'argv': sys.argv,",
    "         'parent': os.getppid(), 'pid': os.getpid(), 'file': __file__}",
    "folder = pathlib.Path(sys.argv[1])",
    "(folder / f'{round}-{rank}.new').write_text(json.dumps(found))",
    "(folder / f'{round}-{rank}.new').rename(folder / f'{round}-{rank}.json')",
    "while not (folder / 'end').exists(): time.sleep(0.01)",
    "sys.exit(int(sys.argv[2]))",
)


class Run:
    """One run, looked at from outside."""

    def __init__(self, nodes: Fleet, folder: Path) -> None:
        self.nodes = nodes
        self.folder = folder

    def start(self, *flags: str, preload: str = "decimal", code: int = 0) -> None:
        self.start_script(
            write_script(self.folder / "worker.py", *WORKER),
            str(self.folder),
            str(code),
            flags=(*flags, "--preload", preload),
        )

    def start_script(self, script: Path, *arguments: str, flags: tuple[str, ...]) -> None:
        self.folder.mkdir(exist_ok=True)
        done = self.nodes.agentctl(
            "run", "--detach", "--nodes", self.nodes.targets(), "--run-id", "r", "--nproc-per-node", "2",
            "--max-restarts", "3", "--stop-grace", "5", *flags, str(script), *arguments,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def round(self, number: int) -> list[dict[str, Any]]:
        """What the workers of that round have found."""

        def found() -> list[dict[str, Any]]:
            return read_json_lines(self.folder, f"{number}-*.json")

        wait_until(lambda: len(found()) == 2, PATIENCE_S, what=f"round {number}")
        self.until(lambda status: status["phase"] == "PHASE_RUNNING" and status["round"] == number)
        return found()

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        def status() -> dict[str, Any]:
            found = self.nodes.status("r")
            return found if holds(found) else {}

        return wait_until(status, PATIENCE_S)

    def host(self) -> int:
        return int(self.nodes.status("r")["nodes"][0]["groups"][0]["host_pid"])

    def zygotes(self) -> list[int]:
        return [process.pid for process in descendants(self.host()) if name_of(process.pid) == ZYGOTE]

    def zygote(self) -> int:
        return wait_until(self.zygotes, PATIENCE_S)[0]

    def end(self) -> dict[str, Any]:
        (self.folder / "end").touch()
        return self.until(lambda status: status["phase"] in ("PHASE_SUCCEEDED", "PHASE_FAILED"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # torch keeps a cache folder there
    with fleet(tmp_path, "a") as nodes:
        yield Run(nodes, tmp_path / "out")


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.parametrize("flags", [(), ("--standby",)], ids=["as needed", "standby"])
def test_workers_of_every_round_are_forked_and_are_their_hosts_children(
    run: Run, flags: tuple[str, ...]
) -> None:
    run.start(*flags)
    for number in (1, 2, 3):
        workers = run.round(number)
        assert [worker["preloaded"] for worker in workers] == [True, True]
        assert {worker["parent"] for worker in workers} == {run.host()}
        assert {worker["file"] for worker in workers} == {str(run.folder / "worker.py")}
        if number < 3:
            os.kill(workers[1]["pid"], signal.SIGKILL)
    host, zygote = run.host(), run.zygote()
    status = run.end()
    assert (status["phase"], status["restart_count"]) == ("PHASE_SUCCEEDED", 2)
    assert is_gone(zygote)
    wait_until(lambda: is_gone(host), PATIENCE_S)


def test_a_workers_own_exit_code_and_signal_are_told(run: Run) -> None:
    run.start("--max-restarts", "0", code=7)
    run.round(1)
    failure = run.end()["first_failure"]
    assert (failure["exit_code"], failure.get("signal")) == (7, None)


def test_a_zygote_killed_between_rounds_is_replaced_and_no_worker_notices(run: Run) -> None:
    run.start()
    first, zygote = run.round(1), run.zygote()
    os.kill(zygote, signal.SIGKILL)
    another = wait_until(lambda: set(run.zygotes()) - {zygote}, PATIENCE_S)
    assert not any(is_gone(worker["pid"]) for worker in first)
    os.kill(first[0]["pid"], signal.SIGKILL)
    assert all(worker["preloaded"] for worker in run.round(2))
    (now,) = run.zygotes()
    assert now in another, "beside it there may have been its trial fork"
    assert run.end()["phase"] == "PHASE_SUCCEEDED"


@pytest.mark.parametrize("flags", [(), ("--standby",)], ids=["as needed", "standby"])
def test_a_killed_host_leaves_no_zygote_no_blank_and_no_worker(run: Run, flags: tuple[str, ...]) -> None:
    run.start(*flags)
    run.round(1)
    run.zygote()
    family = [process.pid for process in descendants(run.host())]
    os.kill(run.host(), signal.SIGKILL)
    wait_until(lambda: all(map(is_gone, family)), PATIENCE_S)
    assert all(worker["preloaded"] for worker in run.round(2))
    assert run.end()["phase"] == "PHASE_SUCCEEDED"


def test_the_next_agentd_adopts_zygote_blanks_and_workers(run: Run) -> None:
    run.start("--standby")
    before, host = run.round(1), run.host()
    wait_until(lambda: len(run.zygotes()) == 3, PATIENCE_S, what="a zygote and two blanks")
    family = set(run.zygotes())
    run.nodes["a"].kill()
    run.nodes.again("a")
    run.until(lambda status: status["phase"] == "PHASE_RUNNING")
    assert set(run.zygotes()) == family
    os.kill(before[0]["pid"], signal.SIGKILL)
    after = run.round(2)
    assert {worker["parent"] for worker in after} == {host}
    assert {worker["pid"] for worker in after} < family
    assert run.end()["phase"] == "PHASE_SUCCEEDED"
    wait_until(lambda: all(map(is_gone, family)), PATIENCE_S)


def test_a_stopped_run_leaves_nothing(run: Run) -> None:
    run.start("--standby")
    run.round(1)
    family = [run.host(), *(process.pid for process in descendants(run.host()))]
    assert run.nodes.agentctl("stop", "r", "--nodes", run.nodes.targets()).returncode == 0
    run.until(lambda status: status["phase"] == "PHASE_STOPPED")
    wait_until(lambda: all(map(is_gone, family)), PATIENCE_S)


@pytest.mark.parametrize(
    ("preload", "problem"),
    [("decimal,no_such_module", "No module named 'no_such_module'"), ("os.path", "")],
)
def test_a_run_that_cannot_be_preloaded_goes_on_and_says_why(run: Run, preload: str, problem: str) -> None:
    run.start(preload=preload)
    workers = run.round(1)
    assert [worker["preloaded"] for worker in workers] == [False, False]
    conditions = run.nodes.status("r")["nodes"][0].get("conditions", {})
    assert (problem in conditions.get("PRELOAD_SKIPPED", "none")) if problem else not conditions
    events = run.nodes.agentctl("events", "--nodes", run.nodes.targets(), "-o", "json").stdout
    assert ("without preload: import no_such_module" in events) == bool(problem)
    assert run.end()["phase"] == "PHASE_SUCCEEDED"


@pytest.mark.torch
def test_a_ddp_training_that_lost_a_worker_ends_with_the_same_parameters(run: Run) -> None:
    flags = ("--standby", "--preload", "torch,torch.distributed")
    run.start_script(SCRIPT, "--checkpoint-dir", str(run.folder), "--step-seconds", "0.02", flags=flags)
    wait_until((run.folder / "checkpoint.pt").exists, PATIENCE_S)
    pids = [worker["pid"] for worker in run.nodes.workers("r")]
    assert run.zygote() not in pids
    os.kill(pids[1], signal.SIGKILL)
    ended = run.until(lambda status: status["phase"] in ("PHASE_SUCCEEDED", "PHASE_FAILED"))
    assert (ended["phase"], ended["restart_count"]) == ("PHASE_SUCCEEDED", 1)
    assert not ended["nodes"][0].get("conditions")
    assert parameters(run.folder)
