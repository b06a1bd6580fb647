"""Keeps the host of a released agentd for the tests of live upgrades: all that one imports, in a zip file.

Run before `agentd.host.wire.VERSION` grows: `python tools/keephost.py REVISION FILE`. The code is what git
has under that revision, less its comments and docstrings; the same revision gives the same bytes.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

ENTRY = "agentd.host.__main__"
_LEVEL = 9


def main() -> None:
    """Write the file."""
    revision, file = sys.argv[1:]
    modules = host_modules(revision)
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = f"agentd.host of {revision}, kept by tools/keephost.py".encode()
        for path, source in sorted(modules.items()):
            archive.writestr(zipfile.ZipInfo(path), source, zipfile.ZIP_DEFLATED, _LEVEL)
    print(f"{file}: {len(modules)} modules, {Path(file).stat().st_size} bytes")


def host_modules(revision: str) -> dict[str, str]:
    """The source of all that the host imports, at once or later, by its path."""
    known = set(_git("ls-tree", "-r", "--name-only", revision, "agentd").splitlines())
    found: dict[str, str] = {}
    ahead = [ENTRY]
    while ahead:
        module = ahead.pop()
        stem = module.replace(".", "/")
        path = next((name for name in (f"{stem}/__init__.py", f"{stem}.py") if name in known), None)
        if path is None or path in found:
            continue
        tree = ast.parse(_git("show", f"{revision}:{path}"))
        ahead += [module.rpartition(".")[0], *_imports(tree)]
        found[path] = _bare(tree)
    return found


def _imports(tree: ast.Module) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def _bare(tree: ast.Module) -> str:
    """The code without docstrings, also those of attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return ast.unparse(tree) + "\n"


def _is_text(line: ast.stmt) -> bool:
    return (
        isinstance(line, ast.Expr)
        and isinstance(line.value, ast.Constant)
        and isinstance(line.value.value, str)
    )


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
