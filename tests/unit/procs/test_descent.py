"""What is left of a family is known by descent, at once, and that nothing is left is never said too early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentd.procs import crew as crew_module
from agentd.procs import descent, tree
from agentd.procs.crew import Crew
from agentd.procs.exits import ExitInfo
from agentd.procs.spawn import spawn
from agentd.procs.waiter import Waiter

ADOPTING = """
import os, signal, sys, time
from pathlib import Path
from agentd.procs import descent, prctl, procfs
from agentd.procs.crew import Crew
from agentd.procs.spawn import spawn
from agentd.procs.waiter import Waiter
assert not descent.is_known()
prctl.become_subreaper()
assert descent.is_known()
folder = Path(sys.argv[1])

def wait_for(path):
    while not path.exists():
        time.sleep(0.002)
"""

# Each process forks the next one and is gone: nobody of the chain lives for long.
CHAIN = """
import os, sys
for _ in range(int(sys.argv[2])):
    if os.fork():
        os._exit(0)
os.setsid()
open(sys.argv[1], "w").close()
os._exit(0)
"""

CHAINS = (
    ADOPTING
    + f"""
chain = {CHAIN!r}
leaders = [
    spawn([sys.executable, "-S", "-c", chain, str(folder / str(number)), "150"], env=os.environ)
    for number in range(2)
]
looks = 0
while descent.living(()):
    looks += 1
assert looks > 0
assert {{path.name for path in folder.iterdir()}} == {{"0", "1"}}, "said to be over while it went on"
"""
)

DAEMON = (
    ADOPTING
    + """
script = 'setsid sh -c "env -i sleep 1000 & echo \\\\$! > $FOLDER/pid" & wait; exit 0'
spawn(["sh", "-c", script], env={**os.environ, "FOLDER": str(folder)})
wait_for(folder / "pid")
while not (folder / "pid").read_text():
    time.sleep(0.002)
time.sleep(0.1)
daemon = int((folder / "pid").read_text())
assert daemon in {stat.pid for stat in descent.living(())}
assert descent.living((), lambda stat: stat.session != os.getsid(0)) == []
os.kill(daemon, signal.SIGKILL)
while descent.living(()):
    pass
"""
)

WITHOUT_A_SCAN = (
    ADOPTING
    + """
def scan():
    raise AssertionError("all of /proc was read")

procfs.processes = scan
with Waiter() as waiter:
    crew = Crew(waiter, lambda index, info: None, token="t", ancestors={os.getpid()})
    script = 'setsid sleep 1000 & sleep 1000 & : > "$FOLDER/up"; exec sleep 1000'
    crew.adopt(0, spawn(["sh", "-c", script], env={**os.environ, "FOLDER": str(folder)}))
    crew.complete()
    wait_for(folder / "up")
    crew.children[0].signal_group(signal.SIGKILL)
    assert waiter.wait_until(lambda: crew.gone, time.monotonic() + 60), "not gone"
    try:
        os.waitpid(-1, os.WNOHANG)
        raise AssertionError("somebody is left")
    except ChildProcessError:
        pass
"""
)


@pytest.mark.parametrize("program", [CHAINS, DAEMON, WITHOUT_A_SCAN], ids=["chains", "daemon", "no scan"])
def test_in_a_process_that_adopts(tmp_path: Path, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_process_that_does_not_adopt_knows_nothing_by_descent() -> None:
    assert not descent.is_known()
    assert descent.children(os.getpid()) is not None


def test_the_end_of_what_a_leader_left_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look at an interval finds it: the next one would be in a quarter of an hour."""
    monkeypatch.setattr(tree, "FIRST_STEP_S", 1000.0)
    monkeypatch.setattr(tree, "LAST_STEP_S", 1000.0)
    monkeypatch.setattr(crew_module, "LEFTOVER_GRACE_S", 1000.0)
    exits: list[ExitInfo] = []
    with Waiter() as waiter:
        crew = Crew(waiter, lambda _index, info: exits.append(info))
        crew.adopt(0, spawn(["sh", "-c", "trap '' HUP; sleep 1000 & exit 0"], env=os.environ))
        crew.complete()
        assert waiter.wait_until(lambda: crew.gone, time.monotonic() + 60)
    assert [info.exit_code for info in exits] == [0]


def test_a_stop_that_is_obeyed_takes_no_look_at_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "FIRST_STEP_S", 1000.0)
    with Waiter() as waiter:
        crew = Crew(waiter, lambda _index, _info: None)
        for index in range(3):
            crew.adopt(index, spawn(["sleep", "1000"], env=os.environ))
        crew.complete()
        crew.stop(signal.SIGTERM, time.monotonic() + 1000)
        assert waiter.wait_until(lambda: crew.gone, time.monotonic() + 60)
