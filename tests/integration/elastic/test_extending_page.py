"""docs/extending.md runs as it stands: each block in order, and what it prints is what the page says."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentd.elastic import SimpleElasticAgent

PAGE = Path(__file__).resolve().parents[3] / "docs" / "extending.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MEMBER = re.compile(r"^\| \*{0,2}`(_\w+)\((.*)\)`\*{0,2} \|.*\|.*\|.*\|$", re.MULTILINE)
DOCUMENTED = {
    "_assign_worker_ranks",
    "_exit_barrier",
    "_initialize_workers",
    "_monitor_workers",
    "_rendezvous",
    "_restart_workers",
    "_shutdown",
    "_start_workers",
    "_stop_workers",
}


@dataclass(frozen=True)
class Block:
    """Code of the page, and what the page says it prints."""

    line: int
    code: str
    output: str


def blocks(text: str) -> Iterator[Block]:
    fences = list(FENCE.finditer(text))
    for fence, after in zip(fences, [*fences[1:], None], strict=True):
        if fence[1] == "python":
            output = after[2] if after is not None and after[1] == "text" else ""
            yield Block(text.count("\n", 0, fence.start()) + 1, fence[2], output)


def run(code: Block, names: dict[str, Any]) -> None:
    """Run one block, and compare what it prints with what the page says."""
    # The lines of a traceback are those of the page.
    compiled = compile("\n" * code.line + code.code, str(PAGE), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compiled, names)
    assert printed.getvalue() == code.output, f"{PAGE.name}:{code.line}"


def test_the_page_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(PAGE.read_text(encoding="utf-8")):
        run(block, names)
    assert {"ThreadAgent", "PlacedRendezvous", "FilePerRank", "Diary", "Totals", "SocketHealth"} <= set(names)


def test_the_pages_agent_has_only_the_abstract_methods() -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(PAGE.read_text(encoding="utf-8")):
        run(block, names)
        if "ThreadAgent" in names:
            break
    own = {name for name, value in vars(names["ThreadAgent"]).items() if inspect.isfunction(value)}
    assert own == SimpleElasticAgent.__abstractmethods__


def test_the_page_shows_the_documented_members_with_their_signatures() -> None:
    shown = dict(MEMBER.findall(PAGE.read_text(encoding="utf-8")))
    assert set(shown) == DOCUMENTED
    for name, parameters in shown.items():
        signature = inspect.signature(getattr(SimpleElasticAgent, name))
        names = [part.partition("=")[0] for part in parameters.split(", ") if part]
        assert names == list(signature.parameters)[1:], name


def test_the_page_marks_the_abstract_members() -> None:
    marked = set(re.findall(r"^\| \*\*`(_\w+)\(", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert marked == SimpleElasticAgent.__abstractmethods__
