"""Workers may run on another Python than agentd: each one that is found here shows scripts the same, too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from agentd.procs.waiter import Waiter
from agentd.procs.zygote.keeper import Keeper
from tests.integration.preload.corpus import SCRIPTS
from tests.integration.preload.rig import PYTHON, Commands, base_env

SEEN_AT_ONCE = (
    "main_module", "arguments", "flags", "frames", "signals", "threads", "thread_pool", "streams", "process",
    "dies_with_parent", "environment", "fork", "garbage", "uncaught",
)  # fmt: skip
"""Scripts of the corpus that can follow each other in one process; the last one ends it."""
MODULES = ("random", "logging", "threading", "concurrent.futures")
PLACES = (*os.get_exec_path(), *map(str, Path("~/.pyenv/versions").expanduser().glob("*/bin")))
BEFORE = (
    f"import os, sys, {', '.join(MODULES)}",
    # What scripts of the corpus use, and Python 3.8 has not.
    "if sys.version_info < (3, 10): sys.orig_argv, os.waitstatus_to_exitcode = sys.argv, int",
)
NAME = re.compile(r"python(\d)\.(\d+)$")


def found(lowest: tuple[int, int], below: tuple[int, int]) -> list[str]:
    """One interpreter of each of these versions of Python that are there."""
    by_version: dict[tuple[int, int], str] = {}
    for path in (path for place in PLACES for path in Path(place).glob("python[23].*")):
        named = NAME.match(path.name)
        # What pyenv puts on the PATH is a shell script that may choose none.
        if named is None or path.parent.name == "shims":
            continue
        version = int(named[1]), int(named[2])
        if lowest <= version < below:
            by_version.setdefault(version, str(path))
    return [by_version[version] for version in sorted(by_version)]


@pytest.mark.parametrize(
    "words",
    [(python, "-u") for python in found((3, 8), (4, 0))] + [(PYTHON, "-Xdev", "-Werror", "-s")],
    ids=lambda words: " ".join([words[0].rpartition("/")[2], *words[1:]]),
)
def test_a_script_sees_and_says_the_same_on_every_python(tmp_path: Path, words: tuple[str, ...]) -> None:
    scripts = [textwrap.dedent(SCRIPTS[name]).strip("\n") for name in SEEN_AT_ONCE]
    (tmp_path / "script.py").write_text("\n".join([*BEFORE, *scripts]))
    env = base_env(OF_THE_ZYGOTE="common", PYTHONPATH=str(tmp_path / "elsewhere"))
    commands = Commands(tmp_path, MODULES, env)
    argv = (*words, "script.py", "one", "two")
    forked = commands.forked(*argv, OF_THE_WORKER="own")
    assert forked == commands.execed(*argv, OF_THE_WORKER="own")
    assert "KeyError: 'two'" in forked.stderr


@pytest.mark.parametrize("changed", ["sys.version_info = (3, 7, 16)", "sys.implementation.name = 'pypy'"])
def test_an_interpreter_that_cannot_be_forked_is_named(tmp_path: Path, changed: str) -> None:
    python = sys._base_executable  # type: ignore[attr-defined]  # that of an environment has no user's site
    site = subprocess.check_output(
        [python, "-c", "import site; print(site.USER_SITE)"], env=user_env(tmp_path)
    )
    folder = Path(site.decode().strip())
    folder.mkdir(parents=True)
    (folder / "changes.pth").write_text(f"import sys; {changed}\n")
    assert_named(tmp_path, python)


def test_pythons_before_3_8_are_named(tmp_path: Path) -> None:
    for python in found((2, 0), (3, 8)):
        assert_named(tmp_path, python)


def assert_named(folder: Path, python: str) -> None:
    (folder / "script.py").write_text("open('ran', 'w')\n")
    commands = Commands(folder, ("json",), user_env(folder))
    with Waiter() as waiter:
        keeper = Keeper(waiter, commands.recipe((python, "script.py")))
        try:
            assert keeper.take(1) == []
            assert keeper.problem.startswith(
                "CPython 3.8 or newer can be forked into workers; this is Python "
            )
            assert not (folder / "ran").exists()
        finally:
            keeper.close()


def user_env(folder: Path) -> dict[str, str]:
    return base_env(PYTHONUSERBASE=str(folder / "base"))
