"""docs/failures.md is no promise without proof: every line names tests, and they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPO = Path(__file__).parents[2]
LINES = [
    line
    for line in (REPO / "docs/failures.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| fault |")
]


def test_every_failure_names_a_test() -> None:
    assert len(LINES) > 10
    assert [line for line in LINES if not _named(line)] == []


def test_every_named_test_is_there() -> None:
    assert [named for line in LINES for named in _named(line) if not _exists(named)] == []


def test_every_line_has_all_its_facts() -> None:
    assert [line for line in LINES if "@" in line or len(line.strip("|").split("|")) != 6] == []


def _named(line: str) -> list[str]:
    return re.findall(r"`(tests/[^`]+)`", line)


def _exists(named: str) -> bool:
    path, _, name = named.partition("::")
    if not name:
        return (REPO / path).exists()
    tree = ast.parse((REPO / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(isinstance(node, functions) and node.name == name for node in ast.walk(tree))
