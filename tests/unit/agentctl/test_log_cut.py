"""Output that was removed is told where it is missing, and mixes nothing that stood beside it."""

from __future__ import annotations

import json

import pytest

from agentctl.show.display import JsonLinesDisplay, PeopleDisplay
from agentctl.show.lines import LineAssembler
from agentctl.show.tables import run_summary
from agentd.api.types import LogChunk, LogGap, LogStream, NodeStatus, RunStatus
from agentd_client import LogCut, LogReceived


def chunk(offset: int, data: bytes) -> LogReceived:
    found = LogChunk(
        role="default", round=1, rank=3, local_rank=0, stream=LogStream.STDOUT, offset=offset, data=data
    )
    return LogReceived(chunk=found, source="a")


def cut(offset: int, size: int) -> LogCut:
    gap = LogGap(
        role="default", round=1, rank=3, local_rank=0, stream=LogStream.STDOUT, offset=offset, size=size
    )
    return LogCut(gap=gap, source="a")


def test_a_line_whose_end_is_gone_is_not_joined_with_what_follows(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    display = PeopleDisplay(LineAssembler())
    for event in (chunk(0, b"one\ntw"), cut(6, 3 << 20), chunk(6 + (3 << 20), b"nine\n")):
        display.show(event)
    out, err = capfdbinary.readouterr()
    assert out == b"[default 3]: one\n[default 3]: tw\n[default 3]: nine\n"
    assert b"[default 3] stdout of round 1: 3.0 MiB of the oldest part were removed" in err


def test_a_file_that_was_emptied_is_told_too(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    PeopleDisplay(LineAssembler()).show(cut(6, 0))
    assert b"the file was cut short" in capfdbinary.readouterr()[1]


def test_programs_get_it_as_a_message(capfd: pytest.CaptureFixture[str]) -> None:
    JsonLinesDisplay().show(cut(6, 100))
    gap = json.loads(capfd.readouterr()[0])["gap"]
    assert (gap["offset"], gap["size"], gap["rank"], gap["stream"]) == ("6", "100", 3, "LOG_STREAM_STDOUT")


def test_the_status_of_a_run_names_what_degrades_it_on_each_node() -> None:
    node = NodeStatus(node_id="a", conditions={"STATE_DISK_FULL": "next to nothing is free"})
    run = RunStatus(run_id="r", incarnation=1, nodes=(node, NodeStatus(node_id="b")))
    assert "  a: STATE_DISK_FULL: next to nothing is free" in run_summary(run)
