"""Tests of what a process with one thread does otherwise than one with several.

Libraries that other tests load keep threads of their own: a test process that had one may have many by now.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
LIMIT_S = 110.0
_RERUN = "THREADS_TEST_RERUN"


def count() -> int:
    """This process' threads, those that Python does not know too."""
    return len(os.listdir("/proc/self/task"))


@contextlib.contextmanager
def another() -> Iterator[None]:
    """There is a second thread, which does nothing."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def in_as_many_as_asked(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process with one thread, a new one if need be, unless its argument `threads` is more.

    The ids of its parameters must be plain words: the new process finds it by them.
    """

    @functools.wraps(test)
    def run(**arguments: object) -> None:
        if arguments.get("threads", 1) != 1:
            with another():
                test(**arguments)
        elif count() == 1:
            test(**arguments)
        else:
            assert _RERUN not in os.environ, "even a new process that runs only this test has threads"
            _rerun(os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0])

    return run


def _rerun(test_id: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={folder}/it", test_id],
            cwd=REPO,
            env={**env, _RERUN: "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
