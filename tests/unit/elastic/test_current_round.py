"""A worker may write while its round file says so, waits once it has run out, refuses when it is over."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic import StaleRoundError, assert_current_round
from agentd.elastic import current_round as module
from agentd.host.roundfile import RoundFile
from agentd.procs.boottime import boottime

OWN = {"run_id": "job", "incarnation": 7, "round": 2, "node_id": "n1"}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The round file of a worker of round 2; there is none yet."""
    path = tmp_path / "round.json"
    monkeypatch.setenv("AGENTD_ROUND_FILE", str(path))
    monkeypatch.setenv("AGENTD_RUN_ID", "job")
    monkeypatch.setenv("AGENTD_INCARNATION", "7")
    monkeypatch.setenv("AGENTD_ROUND", "2")
    return path


DOCS = Path(__file__).parents[3] / "docs" / "workers.md"


def write(file: Path, valid_for: float | None = 600.0, **changes: Any) -> float:
    """What a host writes; answers until when it is valid."""
    until = boottime() + (valid_for or 0.0)
    told = {**OWN, **({} if valid_for is None else {"valid_until": until}), **changes}
    partial = file.with_suffix(".new")
    partial.write_text(json.dumps(told))
    partial.replace(file)
    return until


def test_a_valid_file_of_this_round_answers_until_when(file: Path) -> None:
    until = write(file)
    assert assert_current_round(0.0) == until


def test_without_a_round_file_nothing_fences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTD_ROUND_FILE", raising=False)
    assert assert_current_round(0.0) == math.inf


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"round": 3}, "round 3 has begun"),
        ({"run_id": "other"}, "of run_id other"),
        ({"incarnation": 8}, "of incarnation 8"),
    ],
    ids=["a newer round", "another run", "another incarnation"],
)
def test_a_file_of_what_came_later_is_refused_at_once(
    file: Path, changes: dict[str, Any], words: str
) -> None:
    write(file, **changes)
    began = time.monotonic()
    with pytest.raises(StaleRoundError, match=words) as refused:
        assert_current_round(600.0)
    assert time.monotonic() - began < 60.0
    assert (refused.value.round, refused.value.round_file) == (2, str(file))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda file: write(file, -1000.0), "ran out 1"),
        (lambda file: write(file, None, valid_until=0.0), "has not begun"),
        (lambda file: write(file, None), "does not keep the round file"),
        (lambda file: write(file, round=1), "there is none of this round"),
        (lambda file: None, "there is none of this round"),
        (lambda file: file.write_text('{"round":'), "there is none of this round"),
        (lambda file: file.write_text("[]"), "there is none of this round"),
        (lambda file: write(file, None, valid_until=math.inf), "does not keep"),
        (lambda file: write(file, None, valid_until="9999999999"), "does not keep"),
    ],
    ids=["run out", "no contact", "older host", "older round", "none", "half", "list", "infinite", "text"],
)
def test_what_cannot_be_confirmed_is_refused_after_the_bound(file: Path, made: Any, words: str) -> None:
    made(file)
    with pytest.raises(StaleRoundError, match=words):
        assert_current_round(0.05)


def test_a_renewal_ends_the_wait(file: Path) -> None:
    write(file, -1.0)
    renewed: list[float] = []
    later = threading.Timer(0.1, lambda: renewed.append(write(file, 60.0)))
    later.start()
    try:
        until = assert_current_round(30.0)
    finally:
        later.join()
    assert [until] == renewed


def test_a_newer_round_ends_the_wait(file: Path) -> None:
    write(file, -1.0)
    later = threading.Timer(0.1, lambda: write(file, round=3))
    later.start()
    try:
        with pytest.raises(StaleRoundError) as refused:
            assert_current_round(600.0)
    finally:
        later.join()
    assert refused.value.newest == 3


def test_a_process_without_its_workers_environment_is_told_so(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file)
    monkeypatch.delenv("AGENTD_ROUND")
    with pytest.raises(StaleRoundError, match="whole environment"):
        assert_current_round(0.0)


def test_the_module_stands_alone_so_that_a_copy_of_it_works(file: Path, tmp_path: Path) -> None:
    write(file, 60.0)
    assert module.__file__
    (tmp_path / "copied.py").write_text(Path(module.__file__).read_text())
    script = (
        "import copied, sys; copied.assert_current_round(); print([m for m in sys.modules if 'agentd' in m])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    ("made", "current"),
    [
        (lambda file: write_as_a_host(file, 2, boottime() + 60.0), True),
        (lambda file: write_as_a_host(file, 2, boottime() - 1.0), False),
        (lambda file: write_as_a_host(file, 2, 0.0), False),
        (lambda file: write_as_a_host(file, 3, boottime() + 60.0), False),
        (lambda file: None, False),
    ],
    ids=["current", "run out", "no contact", "newer", "none"],
)
def test_the_shells_check_of_the_docs_agrees(file: Path, made: Any, current: bool) -> None:
    made(file)
    (script,) = re.findall(r"^```sh\n(round_is_current.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    # A script that asks keeps its own arguments.
    asking = f'{script}\nround_is_current; answer=$?; [ "$1" = mine ] || exit 2; exit $answer'
    command = ["sh", "-c", asking, "sh", "mine"]
    done = subprocess.run(command, stderr=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == (0 if current else 1)


def write_as_a_host(file: Path, round: int, valid_until: float) -> None:
    RoundFile(str(file.parent), run_id="job", incarnation=7, node_id="n1").write(round, valid_until)
    assert json.loads(file.read_text())["valid_until"] == valid_until
