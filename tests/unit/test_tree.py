"""The rules of the tree beyond the import graph: what may read a clock, do I/O or touch processes.

The import graph itself, which room may use which, is held by the contracts in pyproject.toml.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

PURE = ("agentd/core", "agentd/api", "agentd/hub/core.py", "agentd/hub/lease.py", "agentd/hub/messages.py")
# fmt: off
CLOCKS_AND_IO = frozenset({
    "asyncio", "concurrent", "ctypes", "fcntl", "grpc", "http", "io", "logging", "mmap", "multiprocessing",
    "os", "pathlib", "psutil", "queue", "random", "secrets", "select", "selectors", "shutil", "signal",
    "socket", "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib", "uuid",
})
# fmt: on
PURE_OS = re.compile(
    r"os\.(path\.(join|basename|dirname|normpath|isabs|split|splitext)|fspath|sep|PathLike)$"
)
READS_THE_WORLD = re.compile(r"(^|\.)(datetime|date)\.(now|utcnow|today)$|^(open|print|input|breakpoint)$")
# One file knows gRPC's errors so that no other has to, one reads the names of signals, which are a table, and
# one waits for both sides of the wire.
MAY_IMPORT = {
    "agentd/api/errwire.py": {"grpc"},
    "agentd/api/patience.py": {"asyncio"},
    "agentd/api/signals.py": {"signal"},
}

PROCESS_MODULES = frozenset({"psutil", "subprocess"})
PROCESS_CALLS = re.compile(
    r"^os\.(kill|killpg|fork|forkpty|posix_spawn\w*|exec[lv]\w*|spawn[lv]\w*|system|popen|pidfd_open|wait\w*)$"
    r"|^signal\.pidfd_send_signal$|^asyncio\.create_subprocess_\w+$|^pty\.(fork|spawn)$"
)
# The zygote runs on the user's interpreter, where nothing of agentd is installed: it brings its own fork.
OWN_PROCESSES = ("agentd/procs", "agentd/host/zygote.py")
# The decorator itself, and what runs on the user's interpreter.
OWN_DATA = ("agentd/quickdata.py",)
# Arguments and values of functions go from a process to its own children, and never over a network.
FUNCTION_WORKERS = "agentd/elastic/multiprocessing/functions/"
FORKS_WITH_ONE_THREAD = "agentd/procs/spawn.py"

# module -> what importing it must not load: the host stays small, the client stays quick.
LEAN_IMPORTS = {
    "agentd.api": {"grpc", "google.protobuf", "asyncio"},
    "agentd.core": {"grpc", "google.protobuf", "asyncio"},
    "agentd.elastic": {"grpc", "google.protobuf", "asyncio", "torch", "psutil", "click", "rich"},
    "agentd.host.__main__": {"grpc", "google.protobuf", "asyncio", "torch", "sqlite3", "click", "rich"},
    "agentd.daemon.service": {
        "torch",
        "psutil",
        "rich",
        "prometheus_client",
        "tomllib",
        "grpc_reflection.v1alpha",
    },
    "agentd_client": {"grpc", "google.protobuf", "asyncio"},
    "agentctl.cli": {
        *("grpc", "google.protobuf", "asyncio", "torch", "prometheus_client", "sqlite3", "rich"),
        *("agentd_client", "agentd.api.types", "agentd.daemon", "agentd.elastic"),
    },
    "agentctl.commands.run": {"grpc", "google.protobuf", "asyncio", "rich", "agentd_client"},
}
# What needs nobody on the wire waits for no gRPC: it is most of the time that a program takes to start.
COMMANDS_WITHOUT_GRPC = (
    ("agentctl.cli", "agentctl", "version"),
    ("agentctl.cli", "agentctl", "run", "--help"),
    ("agentctl.cli", "agentctl", "run", "--nodes", "a"),
    ("agentctl.cli", "agentctl", "stop"),
    ("agentd.cli", "agentd", "config"),
)


def _sources(*roots: str) -> list[Path]:
    """Hand-written modules below the roots; a root that is a file is itself."""
    found = [
        path
        for root in roots
        for path in ([REPO / root] if root.endswith(".py") else (REPO / root).rglob("*.py"))
    ]
    return sorted(path for path in found if path.exists() and "_pb2" not in path.name)


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import, late and type-checking ones too, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every name and dotted attribute that is read, the longest form of each, aliases of modules resolved."""
    aliases = {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
            name = ast.unparse(node)
            head, _, rest = name.partition(".")
            yield node.lineno, f"{aliases.get(head, head)}.{rest}" if rest else name


def _place(path: Path, line: int) -> str:
    return f"{path.relative_to(REPO)}:{line}"


def _impurities(path: Path) -> Iterator[str]:
    tree = _parse(path)
    allowed = MAY_IMPORT.get(str(path.relative_to(REPO)), set())
    for line, name in _imports(tree):
        module = name.split(".")[0]
        if module in CLOCKS_AND_IO - allowed and not _only_pure_os(tree, name):
            yield f"{_place(path, line)} imports {name}"
    for line, name in _names(tree):
        if READS_THE_WORLD.search(name):
            yield f"{_place(path, line)} uses {name}"


def _only_pure_os(tree: ast.AST, imported: str) -> bool:
    """Joining paths is arithmetic; everything else in os asks the system."""
    if imported != "os":
        return bool(PURE_OS.match(imported))
    return all(PURE_OS.match(name) for _, name in _names(tree) if name.startswith("os."))


def _process_uses(path: Path) -> Iterator[str]:
    tree = _parse(path)
    for line, name in _imports(tree):
        if name.split(".")[0] in PROCESS_MODULES or PROCESS_CALLS.match(name):
            yield f"{_place(path, line)} imports {name}"
    for line, name in _names(tree):
        if PROCESS_CALLS.match(name):
            yield f"{_place(path, line)} uses {name}"


def test_decisions_read_no_clock_and_do_no_io() -> None:
    assert [found for path in _sources(*PURE) for found in _impurities(path)] == []


def test_only_procs_starts_finds_and_signals_processes() -> None:
    outside = [
        path for path in _sources("agentd") if not str(path.relative_to(REPO)).startswith(OWN_PROCESSES)
    ]
    assert [found for path in outside for found in _process_uses(path)] == []


def test_host_and_elastic_know_no_grpc() -> None:
    places = [
        _place(path, line)
        for path in _sources("agentd/host", "agentd/elastic", "agentd/procs")
        for line, name in _imports(_parse(path))
        if name.split(".")[0] in {"grpc", "grpc_health", "grpc_reflection"}
    ]
    assert places == []


def test_nothing_unpickles() -> None:
    places = [
        f"{_place(path, line)} {name}"
        for path in _sources("agentd", "client")
        if not str(path.relative_to(REPO)).startswith(FUNCTION_WORKERS)
        for line, name in _imports(_parse(path))
        if name.split(".")[0] in {"pickle", "marshal", "shelve"}
    ]
    assert places == []


def test_code_between_fork_and_exec_is_for_the_one_place_that_counts_its_threads() -> None:
    places = [
        _place(path, line)
        for path in _sources("agentd", "client")
        for line, name in _keywords(_parse(path))
        if name == "preexec_fn" and path != REPO / FORKS_WITH_ONE_THREAD
    ]
    assert places == []


def _keywords(tree: ast.AST) -> Iterator[tuple[int, str]]:
    return (
        (node.value.lineno, node.arg) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg
    )


def _loaded_by(module: str) -> set[str]:
    """Modules in a fresh interpreter after the import, less those it starts with."""
    script = (
        "import sys; before = set(sys.modules); sys.path[:0] = ['.', 'client']\n"
        f"import {module}; print(*(set(sys.modules) - before))"
    )
    return set(_output_of(script).split())


def _output_of(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_agentd_loads_nothing_else() -> None:
    assert _loaded_by("agentd") == {"agentd"}


def _there(module: str) -> bool:
    parent = module.rpartition(".")[0]
    return (not parent or _there(parent)) and importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("module", [module for module in LEAN_IMPORTS if _there(module)])
def test_an_import_loads_no_more_than_its_room_needs(module: str) -> None:
    assert _loaded_by(module) & LEAN_IMPORTS[module] == set()


@pytest.mark.parametrize("words", COMMANDS_WITHOUT_GRPC, ids=" ".join)
def test_a_command_that_asks_nobody_loads_no_grpc(words: tuple[str, ...]) -> None:
    module, command, *arguments = words
    script = (
        "import contextlib, io, sys; sys.path[:0] = ['.', 'client']; import click\n"
        f"from {module} import {command}\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(click.ClickException):\n"
        f"    {command}.main({arguments!r}, standalone_mode=False)\n"
        "print(*sys.modules)"
    )
    loaded = set(_output_of(script).split())
    assert module in loaded
    assert loaded & {"grpc", "google.protobuf", "asyncio"} == set()


def test_data_is_made_by_the_quick_decorator() -> None:
    """The standard library's takes a millisecond for each class, at every start of every program."""
    places = [
        _place(path, line)
        for path in _sources("agentd", "client")
        for line, name in _imports(_parse(path))
        if name == "dataclasses.dataclass" and str(path.relative_to(REPO)) not in OWN_DATA
    ]
    assert places == []


def test_nobody_is_told_to_install_a_strangers_package() -> None:
    """The bare name on the index belongs to someone else."""
    texts = [
        path
        for pattern in ("*.md", "docs/**/*.md", "deploy/**/*", "agentd/**/*.py", "client/**/*.py")
        for path in REPO.glob(pattern)
    ]
    wrong = re.compile(r"(pip|uv|pipx)\s+(install|add)\s+[^\n`]*\bagentd(?![-\w/.])")
    assert [
        str(path.relative_to(REPO)) for path in texts if path.is_file() and wrong.search(path.read_text())
    ] == []


@pytest.mark.parametrize(
    ("source", "finds"),
    [
        ("import time", 1),
        ("from datetime import datetime\nx = datetime.now()", 1),
        ("import os\nx = os.path.join('a', 'b')", 0),
        ("import os as o\nx = o.getpid()", 1),
        ("def f():\n    from os import getpid\n    return open('x')", 2),
    ],
)
def test_the_rule_of_purity_bites(
    source: str, finds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPO", tmp_path)
    module = tmp_path / "module.py"
    module.write_text(source)
    assert len(list(_impurities(module))) == finds


@pytest.mark.parametrize(
    ("source", "finds"),
    [
        ("import psutil", 1),
        ("import os\nos.kill(1, 9)", 1),
        ("import os\nos.getpid()", 0),
        ("from os import killpg", 1),
        ("import asyncio\nasyncio.create_subprocess_exec('x')", 1),
    ],
)
def test_the_rule_of_processes_bites(
    source: str, finds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPO", tmp_path)
    module = tmp_path / "module.py"
    module.write_text(source)
    assert len(list(_process_uses(module))) == finds
