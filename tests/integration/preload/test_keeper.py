"""A zygote that cannot be, or dies, costs nothing but the time it would have saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.procs import prctl, procfs
from agentd.procs.identity import identify, is_alive
from agentd.procs.waiter import Waiter
from agentd.procs.zygote.command import NotForkable, python_command
from agentd.procs.zygote.forked import Blank, BlankLost, start_all
from agentd.procs.zygote.keeper import Keeper
from tests.integration.preload.rig import PYTHON, Commands, Streams, begin, waited_for
from tests.support.waiting import wait_until

REPO = Path(__file__).parents[3]
ARGV = (PYTHON, "script.py")


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    (tmp_path / "script.py").write_text("import sys, time\nsys.exit(3)\n")
    return Commands(tmp_path, ("json",))


@pytest.fixture
def waiter() -> Iterator[Waiter]:
    with Waiter() as found:
        yield found


def served_until(waiter: Waiter, condition: Callable[[], bool]) -> None:
    """A keeper works within a wait, and does not end it."""

    def looked() -> bool:
        waiter.wait(waiter.now() + 0.01)
        return condition()

    wait_until(looked)


def keeper_of(commands: Commands, waiter: Waiter, module: str = "", **limits: float) -> Keeper:
    if module:
        (commands.folder / "preloaded.py").write_text(module)
        commands.modules = ("preloaded",)
    return Keeper(waiter, commands.recipe(ARGV), **limits)


LEAVES_A_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(99,), name='pump', daemon=True).start()
"""
INITIALIZES = """
import sys, types
sys.modules['torch.cuda'] = types.SimpleNamespace(is_initialized=lambda: True)
"""
FAILS_FORKED = """
import os, sys, types
own = os.getpid()
def ones(*_):
    if os.getpid() != own: raise OSError('forked')
sys.modules['torch'] = types.SimpleNamespace(ones=ones)
"""
FORKS = """
import os
os.fork()
"""
CANNOT_FORK_LATER = """
import os
calls, fork = [], os.fork
def few():
    calls.append(1)
    if len(calls) > 1: raise BlockingIOError(11, 'Resource temporarily unavailable')
    return fork()
os.fork = few
"""
HANGS_FORKED = FAILS_FORKED.replace("raise OSError('forked')", "__import__('time').sleep(99)")


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("import no_such_thing", "import preloaded: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("1 / 0", "import preloaded: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "import preloaded: SystemExit: 3"),
        (LEAVES_A_THREAD, "the imports left threads running: pump"),
        (INITIALIZES, "the imports initialized torch.cuda, which no fork can use"),
        (FAILS_FORKED, "a trial fork failed at a matrix product"),
        ("import os; os._exit(0)", "it ended with exit code 0"),
        (CANNOT_FORK_LATER, "only 0 of 1 workers could be forked: it cannot fork: [Errno 11] Resource"),
    ],
)
def test_what_cannot_be_forked_is_named_and_no_worker_is_had(
    commands: Commands, waiter: Waiter, module: str, problem: str
) -> None:
    keeper = keeper_of(commands, waiter, module)
    try:
        assert keeper.take(1) == []
        assert problem in keeper.problem
    finally:
        keeper.close()


def test_a_trial_fork_that_hangs_ends_and_is_named(commands: Commands, waiter: Waiter) -> None:
    commands.trial_limit_s = 0.2
    keeper = keeper_of(commands, waiter, HANGS_FORKED)
    try:
        assert keeper.take(1) == []
        assert keeper.problem == "a trial fork hung for 0.2 s at a matrix product"
    finally:
        keeper.close()


def test_an_import_that_hangs_is_given_up_once_and_for_all(commands: Commands, waiter: Waiter) -> None:
    keeper = keeper_of(commands, waiter, "import time; time.sleep(99)", import_limit_s=0.5)
    try:
        for _ in range(2):
            assert keeper.take(1) == []
            assert keeper.problem == "to import preloaded took longer than 0.5 s"
        served_until(waiter, lambda: not keeper.pids())
    finally:
        keeper.close()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("bash", "x.sh"), "bash is not called python"),
        ((PYTHON, "-S", "x.py"), "with -S it imports no site module"),
        ((PYTHON, "-uI", "-m", "x"), "with -I it ignores PYTHONPATH"),
        ((PYTHON, "-Bi", "x.py"), "with -i it becomes interactive"),
        ((PYTHON,), "the command line names no program"),
        ((PYTHON, "-"), "the command line names no program"),
        ((PYTHON, "-u", "-m"), "-m lacks its value"),
    ],
)
def test_a_command_that_cannot_be_forked_says_why(words: tuple[str, ...], reason: str) -> None:
    with pytest.raises(NotForkable, match=f"^.*{reason}$"):
        python_command(words)


def test_an_interpreter_that_passes_the_hook_over_never_runs_the_program(
    commands: Commands, waiter: Waiter
) -> None:
    wrapper = commands.folder / "python-of-a-site"
    wrapper.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {PYTHON} "$@"\n')
    wrapper.chmod(0o755)
    (commands.folder / "script.py").write_text("open('ran', 'w')\n")
    keeper = Keeper(waiter, commands.recipe((str(wrapper), "script.py")))
    try:
        assert keeper.take(1) == []
        assert keeper.problem == "the interpreter imports no sitecustomize from PYTHONPATH"
        assert not (commands.folder / "ran").exists()
    finally:
        keeper.close()


def test_a_killed_zygote_takes_no_worker_with_it_and_another_one_follows(
    commands: Commands, waiter: Waiter
) -> None:
    (commands.folder / "script.py").write_text(
        "import os, sys, time\nwhile not os.path.exists('go'): time.sleep(0.005)\nsys.exit(3)\n"
    )
    keeper = keeper_of(commands, waiter)
    with Streams() as streams:
        try:
            worker_blank, parked = keeper.take(2)
            worker = begin(worker_blank, commands.order(ARGV, streams))
            (zygote,) = keeper.sessions()
            os.kill(zygote.pid, signal.SIGKILL)
            served_until(waiter, lambda: zygote not in keeper.sessions())
            assert is_alive(worker.identity)
            # Blanks that were handed out stay usable, too.
            second = begin(parked, commands.order(ARGV, streams))
            (commands.folder / "go").touch()
            assert waited_for(waiter, worker).summary == "exit code 3"
            assert waited_for(waiter, second).summary == "exit code 3"
            served_until(waiter, lambda: bool(keeper.sessions() - {zygote}))
            assert len(keeper.take(1)) == 1
        finally:
            keeper.close()


def test_a_zygote_that_does_not_fork_in_time_is_waited_for_once(commands: Commands, waiter: Waiter) -> None:
    keeper = keeper_of(commands, waiter, fork_limit_s=0.3)
    keeper.start()
    keeper.stock(1)
    try:
        served_until(waiter, lambda: len(keeper.pids()) == 2)
        (zygote,) = keeper.sessions()
        os.kill(zygote.pid, signal.SIGSTOP)
        assert keeper.take(2) == []
        assert keeper.problem == "only 0 of 2 workers could be forked: it did not fork within 0.3 s"
        served_until(waiter, lambda: zygote not in keeper.sessions())
        served_until(waiter, lambda: bool(keeper.sessions()))
    finally:
        keeper.close()


def test_a_zygote_that_dies_again_and_again_without_use_is_given_up(
    commands: Commands, waiter: Waiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.procs.zygote.keeper.PAUSE_S", 0.01)
    # A timer, of which nobody but the zygote's host could tell that it goes off.
    dies = "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.5)\nopen('started', 'a').write('x')\n"
    keeper = keeper_of(commands, waiter, dies)
    try:
        keeper.start()
        started = commands.folder / "started"
        served_until(waiter, lambda: started.exists() and len(started.read_text()) == 3)
        served_until(waiter, lambda: not keeper.sessions())
        assert keeper.take(1) == []
        assert keeper.problem == "the zygote is gone: it ended with SIGALRM"
        assert started.read_text() == "xxx"
    finally:
        keeper.close()


def test_a_module_that_forks_is_named(commands: Commands, waiter: Waiter) -> None:
    keeper = keeper_of(commands, waiter, FORKS)
    try:
        keeper.start()
        served_until(waiter, lambda: not keeper.sessions())
        assert keeper.take(1) == []
        assert keeper.problem == "import preloaded forked, and the fork went on as if it were the zygote"
    finally:
        keeper.close()


def test_a_parked_blank_that_was_killed_is_no_worker(commands: Commands, waiter: Waiter) -> None:
    keeper = keeper_of(commands, waiter)
    try:
        blank, other = keeper.take(2)
        assert blank.identity is not None
        os.kill(blank.identity.pid, signal.SIGKILL)
        with Streams() as streams:
            with pytest.raises(BlankLost):
                begin(blank, commands.order(ARGV, streams))
            assert keeper.problem == "1 of 2 forks ended before they began"
            child = begin(other, commands.order(ARGV, streams))
            assert waited_for(waiter, child).summary == "exit code 3"
    finally:
        keeper.close()
    assert keeper.pids() == frozenset()


def test_the_first_has_begun_before_the_others_have_their_orders(
    commands: Commands, waiter: Waiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.procs.zygote.forked.HEAD_START_S", 20.0)
    ordered: list[Blank] = []
    first_had_begun: list[bool] = []
    give_order = Blank.order

    def order(blank: Blank, *order: Any) -> None:
        first_had_begun.extend(first.answers_within(0) for first in ordered[:1])
        give_order(blank, *order)
        ordered.append(blank)

    monkeypatch.setattr(Blank, "order", order)
    keeper = keeper_of(commands, waiter)
    try:
        with Streams() as streams:
            children = list(start_all(keeper.take(3), [(commands.order(ARGV, streams), None)] * 3))
            assert [waited_for(waiter, child).summary for child in children] == ["exit code 3"] * 3
        assert first_had_begun == [True, True]
    finally:
        keeper.close()


def test_blanks_in_stock_are_there_at_once_and_end_with_the_keeper(
    commands: Commands, waiter: Waiter
) -> None:
    keeper = keeper_of(commands, waiter)
    keeper.start()
    keeper.stock(3)
    try:
        served_until(waiter, lambda: len(keeper.pids()) == 4)
        pids = keeper.pids()
        zygote = next(iter(keeper.sessions())).pid
        stats = [procfs.read_stat(pid) for pid in pids - {zygote}]
        assert {(stat.parent, stat.session) for stat in stats if stat} == {(os.getpid(), zygote)}
        assert len(keeper.take(3)) == 3
        assert keeper.pids() == pids
    finally:
        keeper.close()
    assert not any(identify(pid) for pid in pids)


def test_this_process_adopts_only_while_it_waits_for_blanks(commands: Commands, waiter: Waiter) -> None:
    assert not prctl.is_subreaper()
    keeper = keeper_of(commands, waiter)
    try:
        assert len(keeper.take(2)) == 2
        assert not prctl.is_subreaper()
    finally:
        keeper.close()


@pytest.mark.parametrize("thread", [(), ("thread",)], ids=["one thread", "another thread"])
def test_a_killed_owner_leaves_no_zygote_no_blank_and_no_worker(
    tmp_path: Path, thread: tuple[str, ...]
) -> None:
    # With threads the kernel may end the worker first: its lifeline then has no reader to end its children.
    child = "'none'" if thread else "subprocess.Popen(['sleep', '99']).pid"
    (tmp_path / "script.py").write_text(
        f"import subprocess, time\nprint({child}, flush=True)\ntime.sleep(99)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.preload.owner", str(tmp_path), *thread],
        stdout=subprocess.PIPE,
        cwd=REPO,
        text=True,
    )
    try:
        assert owner.stdout is not None
        pids = [int(word) for word in owner.stdout.readline().split() if word != "none"]
        family = [identify(pid) for pid in pids]
        assert len(family) == (3 if thread else 4)
        assert all(family)
    finally:
        owner.kill()
        owner.communicate()
    wait_until(lambda: not any(one and is_alive(one) for one in family), 20, what=f"the end of {family}")
