"""Output that is followed while the agentd that serves it is killed and begins again."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support.fleet import Controller, agentctl, agentd, write_script
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

COUNT = (
    "import os, pathlib, sys, time",
    "end, number = pathlib.Path(sys.argv[1]), 0",
    "while not end.exists():",
    "    print('line', os.environ['AGENTD_ROUND'], number, flush=True)",
    "    number += 1",
    "    time.sleep(0.01)",
    "print('no newline', end='', flush=True)",
)


def test_every_line_is_shown_once_though_agentd_is_killed_in_between(tmp_path: Path) -> None:
    script, end = write_script(tmp_path / "count.py", *COUNT), tmp_path / "end"
    with contextlib.ExitStack() as stack:
        node = stack.enter_context(agentd(tmp_path))
        target = node.target
        command = ("run", "--nodes", target, "--run-id", "lines", str(script), str(end))
        run = stack.enter_context(Controller(*command, root=tmp_path))
        wait_until(lambda: "line 1 9\n" in run.out, 60)
        follower = stack.enter_context(Controller("logs", "lines", "-f", "--nodes", target, root=tmp_path))
        wait_until(lambda: "line 1 9\n" in follower.out, 60)
        node.kill()
        seen = int(follower.out.splitlines()[-2].rpartition(" ")[2])
        node = stack.enter_context(agentd(tmp_path, listen=target))
        later = f"line 1 {seen + 200}\n"
        wait_until(lambda: later in run.out and later in follower.out, 60)
        end.touch()
        assert (run.wait(), follower.wait()) == (0, 0), run.err + follower.err

        files = sorted(node.state_dir.glob("runs/lines/*/default/round_*/0/stdout.log"))
        written = "".join(file.read_text() for file in files).splitlines()
        assert len(files) == 1, "the worker is the same, and so is its file"
        assert written[-1] == "no newline"
        read_later = agentctl("logs", "lines", "--all-rounds", "--nodes", target).stdout
        for shown in (run.out, follower.out, read_later):
            lines = [line.removeprefix("[default 0]: ") for line in shown.splitlines()]
            assert lines == written
