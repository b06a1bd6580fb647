"""Scripts, modules, folders, archives and code on the command line start as they do without a zygote."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.procs.spawn import SpawnError
from agentd.procs.waiter import Waiter
from agentd.procs.zygote.keeper import Keeper
from tests.integration.preload.rig import PYTHON, Commands, Outcome, Streams, base_env, begin, waited_for

SAYS = """
import sys, traceback, part
print(__name__, __file__, __package__, __spec__ and __spec__.name, sys.argv, sys.path[0], part.__file__)
print(sys.orig_argv, open("/proc/self/cmdline").read().split(chr(0)), sys.flags)
traceback.print_stack()
raise SystemExit(len(sys.argv))
"""


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """A folder with the same program as a script, a package, a folder and an archive."""
    for folder in ("package", "folder", "apart"):
        (tmp_path / folder).mkdir()
    (tmp_path / "package/__init__.py").write_text("print('the package')\n")
    for name in (
        "script.py",
        "package/__main__.py",
        "package/inner.py",
        "folder/__main__.py",
        "apart/real.py",
    ):
        (tmp_path / name).write_text(SAYS)
    (tmp_path / "package/relative.py").write_text("from . import inner\n")
    for folder in (".", "folder", "apart"):
        (tmp_path / folder / "part.py").write_text("WHERE = __file__\n")
    (tmp_path / "link.py").symlink_to("apart/real.py")
    with zipfile.ZipFile(tmp_path / "archive.pyz", "w") as archive:
        archive.writestr("__main__.py", SAYS.replace("__file__, __p", "__p"))
        archive.writestr("part.py", "")
    return Commands(tmp_path, ("json", "part"))


@pytest.mark.parametrize(
    "words",
    [
        ("-u", "script.py", "a", ""),
        ("-uBX", "utf8", "-W", "error", "{folder}/script.py"),
        ("-OOu", "./apart/../script.py", "-m", "json"),
        ("-P", "{folder}/apart/../script.py"),
        ("link.py", "a"),
        ("-um", "package", "a"),
        ("-u", "-m", "package.inner", "-c", "x"),
        ("-m", "package.relative"),
        ("folder", "a"),
        ("archive.pyz", "a"),
        ("-c", "import sys; print(sys.argv, sys.path[0], __name__, dir()); raise ValueError(1)", "a"),
        ("-m", "no.such.module"),
        ("no_such_script.py",),
    ],
)  # fmt: skip
def test_a_command_line_means_the_same(commands: Commands, words: tuple[str, ...]) -> None:
    argv = (PYTHON, *(word.format(folder=commands.folder) if "{folder}" in word else word for word in words))
    if "-P" in words:
        commands.modules, commands.env["PYTHONPATH"] = ("json",), str(commands.folder / "apart")
    assert commands.forked(*argv) == commands.execed(*argv)


def test_the_users_own_sitecustomize_runs_once_for_all_and_is_the_only_one(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("import builtins\nbuiltins.customized = __file__\n")
    (tmp_path / "script.py").write_text(
        "import sys, sitecustomize\n"
        "print(customized, sitecustomize.__file__, sitecustomize in sys.modules.values())\n"
    )
    commands = Commands(tmp_path, ("json",), base_env(PYTHONPATH=str(tmp_path / "site")))
    outcome = commands.forked(PYTHON, "script.py")
    assert outcome == commands.execed(PYTHON, "script.py")
    assert outcome.end == "exit code 0", outcome


def test_a_sitecustomize_that_fails_is_told_of_in_each_worker(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("raise ValueError('of the site')\n")
    (tmp_path / "script.py").write_text("import sys\nprint('sitecustomize' in sys.modules)\n")
    commands = Commands(tmp_path, ("json",), base_env(PYTHONPATH=str(tmp_path / "site")))
    outcome = commands.forked(PYTHON, "script.py")
    assert outcome == commands.execed(PYTHON, "script.py")
    assert "of the site" in outcome.stderr


def test_workers_have_their_own_arguments_environment_and_random_numbers(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    (tmp_path / "script.py").write_text(
        "import os, random, sys, numpy, multiprocessing\n"
        "print(sys.argv, os.environ['RANK'])\n"
        "print(open('/proc/self/cmdline').read().split(chr(0))[1:-1], sys.argv == sys.orig_argv[1:])\n"
        "print(random.random(), numpy.random.rand(), bytes(multiprocessing.current_process().authkey))\n"
    )
    commands = Commands(tmp_path, ("random", "numpy.random", "multiprocessing"))
    outcomes = several(commands, 3)
    said = [outcome.stdout.splitlines() for outcome in outcomes]
    assert [lines[0] for lines in said] == [f"['script.py', '--rank={n}'] {n}" for n in range(3)]
    assert [lines[1] for lines in said] == [f"['script.py', '--rank={n}'] True" for n in range(3)]
    for drawn in zip(*(lines[2].split(" ", 2) for lines in said), strict=True):
        assert len(set(drawn)) == 3, drawn


def test_what_an_import_does_to_the_environment_is_there_as_after_an_import(tmp_path: Path) -> None:
    (tmp_path / "setting.py").write_text(
        "import os\nos.environ.setdefault('SET', 'by import')\nos.environ.setdefault('RANK', 'by import')\n"
        "os.environ.pop('UNWANTED', 0)\nos.environ['COMMON'] += ' and more'\n"
    )
    (tmp_path / "script.py").write_text(
        "import setting, os\n"
        "print(*(os.environ.get(name) for name in ('SET', 'RANK', 'UNWANTED', 'COMMON')))\n"
    )
    commands = Commands(tmp_path, ("setting",), base_env(UNWANTED="1", COMMON="of all"))
    assert commands.forked(PYTHON, "script.py", RANK="7") == commands.execed(PYTHON, "script.py", RANK="7")


def test_what_an_import_does_to_its_process_is_there_as_after_an_import(tmp_path: Path) -> None:
    (tmp_path / "setting.py").write_text(
        "import faulthandler, os, signal, sys\n"
        "os.chdir('/'); os.umask(0o27); sys.setrecursionlimit(1234); signal.signal(signal.SIGTERM, print)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])\n"
        # An end of a process with this waits for a thread, which a fork has not.
        "faulthandler.dump_traceback_later(60)\n"
    )
    (tmp_path / "script.py").write_text(
        "import setting, os, signal, sys\n"
        "print(os.getcwd(), os.umask(0), sys.getrecursionlimit(), signal.getsignal(signal.SIGTERM))\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n"
    )
    commands = Commands(tmp_path, ("setting",))
    outcome = commands.forked(PYTHON, str(tmp_path / "script.py"))
    assert outcome == commands.execed(PYTHON, str(tmp_path / "script.py"))
    assert outcome.stdout.startswith("/ ")


def test_a_worker_whose_directory_is_gone_is_refused_as_when_it_is_execed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")
    commands = Commands(tmp_path, ("json",))
    with Waiter() as waiter, Streams() as streams:
        keeper = Keeper(waiter, commands.recipe((PYTHON, "script.py")))
        try:
            (blank,) = keeper.take(1)
            order = replace(commands.order((PYTHON, "script.py"), streams), cwd=str(tmp_path / "gone"))
            with pytest.raises(SpawnError, match="gone: as its directory"):
                begin(blank, order)
        finally:
            keeper.close()


def several(commands: Commands, count: int) -> list[Outcome]:
    """Workers of one zygote, with a RANK and an argument of their own."""
    outcomes = []
    with Waiter() as waiter:
        keeper = Keeper(waiter, commands.recipe((PYTHON, "script.py", "--rank=0")))
        try:
            for rank, blank in enumerate(keeper.take(count)):
                with Streams() as streams:
                    argv = (PYTHON, "script.py", f"--rank={rank}")
                    order = commands.order(argv, streams, RANK=str(rank))
                    child = begin(blank, order)
                    outcomes.append(streams.outcome(waited_for(waiter, child)))
        finally:
            keeper.close()
    return outcomes
