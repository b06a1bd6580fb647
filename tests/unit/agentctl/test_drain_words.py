"""`agentctl drain`: what its flags mean together, and how drained nodes read."""

from __future__ import annotations

import pytest

from agentctl.cli import main
from agentctl.exits import ExitCode
from agentctl.show.drains import drain_line, left_line, promise
from agentctl.show.tables import nodes_table
from agentctl.show.words import clock_time
from agentd.api.types import Drain, DrainMode, DrainReport, GroupRef, NodeInfo, Phase, RunRef

WAIT = Drain(mode=DrainMode.WAIT, since=1000.0, reason="new disk")
MOVE = Drain(mode=DrainMode.MOVE, since=1000.0)
GROUP = GroupRef(run_id="r", incarnation=1, role="train", phase=Phase.RUNNING)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["drain"], "NODE"),
        (["drain", ","], "name the nodes"),
        (["drain", "a,a"], "named twice"),
        (["drain", "a", "--deadline", "0"], "--move"),
        (["drain", "a", "--deadline", "soon"], "10m"),
        (["drain", "a", "--deadline", "1m", "--move"], "it excludes --move"),
        (["undrain"], "NODE"),
        (["renew"], "RUN"),
    ],
)
def test_wrong_usage_is_said_before_any_node_is_asked(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == ExitCode.USAGE
    assert says in capsys.readouterr().err


def test_what_is_promised_of_a_node() -> None:
    report = DrainReport(drain=WAIT, groups=(GROUP, GROUP))
    assert promise(DrainReport(drain=WAIT)) == "nothing runs there"
    assert promise(report) == "it waits for run r to end"
    assert promise(DrainReport(drain=MOVE, groups=(GROUP,))) == "it leaves run r"
    until = DrainReport(drain=Drain(mode=DrainMode.WAIT, since=1000.0, deadline=2000.0), groups=(GROUP,))
    assert promise(until).endswith(f"and leaves what is still there at {clock_time(2000.0)}")


def test_what_is_left_on_a_node() -> None:
    assert left_line(NodeInfo(node_id="a")) == "is empty"
    assert left_line(NodeInfo(node_id="a", groups=(GROUP,))) == "has 1 worker group left: r/train running"
    hub = NodeInfo(node_id="a", hub_of=(RunRef(run_id="r", incarnation=1), RunRef(run_id="s", incarnation=2)))
    assert left_line(hub) == (
        "is empty, and is the hub of runs r, s: other nodes go on, and need this agentd to the end"
    )
    assert drain_line(WAIT) == f"drained since {clock_time(1000.0)}, waits for its runs to end: new disk"


@pytest.mark.parametrize(
    ("node", "state"),
    [
        (NodeInfo(node_id="a"), "ready"),
        (NodeInfo(node_id="a", drain=WAIT), "drained"),
        (NodeInfo(node_id="a", drain=WAIT, groups=(GROUP,)), "draining"),
        (NodeInfo(node_id="a", drain=WAIT, ending=True), "ending"),
        (NodeInfo(node_id="a", conditions=("JOURNAL_BEHIND",)), "JOURNAL_BEHIND"),
    ],
)
def test_the_state_of_a_node_is_one_word(node: NodeInfo, state: str) -> None:
    (row,) = nodes_table([node]).rows
    assert row[2] == state
