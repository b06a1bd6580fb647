"""What people and programs read: lines of workers, news, the end report, tables, JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agentctl.flags import parse_std
from agentctl.show.display import PeopleDisplay
from agentctl.show.endreport import end_report
from agentctl.show.lines import LONGEST_LINE, Choice, LineAssembler
from agentctl.show.messages import to_dict
from agentctl.show.narration import narrate, waiting_line
from agentctl.show.tables import TableData, plain, run_summary, run_table, runs_table
from agentctl.show.words import clock_time, duration, ranks, size
from agentd.api import convert
from agentd.api.errors import Unreachable
from agentd.api.types import (
    Failure,
    GroupStatus,
    LogChunk,
    LogStream,
    NodeStatus,
    Phase,
    RunStatus,
    WorkerState,
    WorkerStatus,
)
from agentd_client import StatusChanged


def chunk(
    data: bytes, rank: int = 0, *, local_rank: int = 0, stream: LogStream = LogStream.STDOUT, round: int = 1
) -> LogChunk:
    return LogChunk(
        role="default", round=round, rank=rank, local_rank=local_rank, stream=stream, offset=0, data=data
    )


def test_output_becomes_whole_lines_behind_role_and_rank() -> None:
    lines = LineAssembler()
    assert lines.take(chunk(b"one\ntw")) == b"[default 0]: one\n"
    assert lines.take(chunk(b"other\n", 3)) == b"[default 3]: other\n"
    assert lines.take(chunk(b"o\n")) == b"[default 0]: two\n"
    assert lines.take(chunk(b"end")) == b""
    assert lines.rest() == [(LogStream.STDOUT, b"[default 0]: end\n")]
    assert lines.rest() == []


def test_streams_and_rounds_of_a_worker_never_mix() -> None:
    lines = LineAssembler()
    lines.take(chunk(b"out"))
    lines.take(chunk(b"err", stream=LogStream.STDERR))
    assert lines.take(chunk(b"new\n", round=2)) == b"[default 0]: new\n"
    assert sorted(data for _, data in lines.rest()) == [b"[default 0]: err\n", b"[default 0]: out\n"]


def test_a_line_without_an_end_is_shown_in_pieces() -> None:
    shown = LineAssembler(prefixed=False).take(chunk(b"x" * (LONGEST_LINE + 5)))
    assert shown == b"x" * LONGEST_LINE + b"\n"


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        (Choice(), {"0out", "0err", "1out", "1err"}),
        (Choice(redirects=parse_std("3")), set()),
        (Choice(redirects=parse_std("3"), tee=parse_std("0:1")), {"0out"}),
        (Choice(redirects=parse_std("1:3")), {"0out", "0err"}),
        (Choice(redirects=parse_std("1")), {"0err", "1err"}),
        (Choice(local_ranks=frozenset({1})), {"1out", "1err"}),
        (Choice(tee=parse_std("3"), local_ranks=frozenset({0})), {"0out", "0err"}),
    ],
)
def test_redirects_tee_and_filter_choose_as_torchrun_does(choice: Choice, shown: set[str]) -> None:
    seen = {
        f"{rank}{stream.value[3:]}" for rank in (0, 1) for stream in LogStream if choice.shows(rank, stream)
    }
    assert seen == shown


def worker(rank: int, state: WorkerState = WorkerState.HEALTHY, **ended: Any) -> WorkerStatus:
    return WorkerStatus(
        role="default", rank=rank, local_rank=rank % 2, role_rank=rank, pid=100 + rank, state=state, **ended
    )


def node(name: str, *workers: WorkerStatus, phase: Phase = Phase.RUNNING, round: int = 1) -> NodeStatus:
    group = GroupStatus(
        role="default", phase=phase, worker_state=WorkerState.HEALTHY, workers=workers, round=round
    )
    return NodeStatus(node_id=name, name=name, phase=phase, groups=(group,))


WAITING = RunStatus(
    run_id="r",
    incarnation=5,
    phase=Phase.RENDEZVOUS,
    min_members=2,
    max_members=2,
    max_restarts=3,
    missing=("b",),
    nodes=(NodeStatus(node_id="a", name="a", phase=Phase.RENDEZVOUS),),
)
RUNNING = replace(
    WAITING,
    phase=Phase.RUNNING,
    round=1,
    missing=(),
    nodes=(node("a", worker(0), worker(1)), node("b", worker(2), worker(3))),
)
FAILURE = Failure(
    node_id="b",
    role="default",
    round=1,
    rank=3,
    local_rank=1,
    pid=103,
    signal=9,
    message="killed",
    stderr_tail="line 1\nline 2\n",
    time=1_700_000_000.0,
    error_file="/e.json",
    log_dir="/logs/1",
)


def test_progress_tells_who_is_there_and_who_is_missing_and_nothing_twice() -> None:
    assert waiting_line(WAITING) == "waiting for nodes: 1 of 2 there (a), missing: b"
    assert (
        waiting_line(replace(WAITING, missing=("a", "b"))) == "waiting for nodes: 0 of 2 there, missing: a, b"
    )
    assert waiting_line(RUNNING) == ""
    assert narrate(None, WAITING) == []
    assert narrate(WAITING, RUNNING) == ["round 1: 4 workers on a, b"]
    assert narrate(RUNNING, replace(RUNNING, revision=10)) == []


def test_a_wait_for_a_range_of_nodes_names_both_ends() -> None:
    waiting = replace(WAITING, min_members=1, max_members=3)
    assert waiting_line(waiting) == "waiting for nodes: 1 of 1 to 3 there (a), missing: b"


def test_a_wait_is_told_when_it_lasts_and_again_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    display = PeopleDisplay()
    more = replace(WAITING, missing=("b", "c"), min_members=3)
    for at, status in (
        (0.0, WAITING),
        (0.1, more),
        (0.5, WAITING),
        (0.9, WAITING),
        (1.2, WAITING),
        (2.0, more),
    ):
        display.show(StatusChanged(status=status, source="a"))
        display.tick(at)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "agentctl: waiting for nodes: 1 of 2 there (a), missing: b",
        "agentctl: waiting for nodes: 1 of 3 there (a), missing: b, c",
    ]


def test_a_round_is_told_when_all_its_nodes_have_told_their_workers() -> None:
    half = replace(RUNNING, nodes=(node("a", worker(0), worker(1)), node("b")))
    assert narrate(WAITING, half) == []
    assert narrate(half, RUNNING) == ["round 1: 4 workers on a, b"]


@pytest.mark.parametrize("phase", [Phase.RESTARTING, Phase.RENDEZVOUS, Phase.PENDING])
def test_a_round_whose_workers_are_still_to_come_is_not_told_as_one_of_no_workers(phase: Phase) -> None:
    early = replace(RUNNING, nodes=(node("a", worker(0), phase=phase), node("b", worker(1), phase=phase)))
    assert narrate(WAITING, early) == []
    assert narrate(early, RUNNING) == ["round 1: 4 workers on a, b"]


def test_workers_are_stopped_only_where_some_have_not_ended_by_themselves() -> None:
    def stopping(*workers: WorkerStatus, phase: Phase = Phase.STOPPING) -> RunStatus:
        nodes = (node("a", *workers, phase=phase),)
        return replace(RUNNING, phase=Phase.STOPPING, reason="Ctrl-C", nodes=nodes)

    assert narrate(RUNNING, stopping(worker(0, exit_code=0))) == []
    assert narrate(RUNNING, stopping()) == []
    announced, told = stopping(worker(0), phase=Phase.RUNNING), stopping(worker(0))
    assert narrate(RUNNING, announced) == []
    assert narrate(announced, told) == ["workers are being stopped: Ctrl-C"]
    assert narrate(told, told) == []


def test_a_group_that_could_not_start_its_workers_is_no_rank_and_no_process() -> None:
    failure = Failure(node_id="a", role="reader", round=1, message="cannot start /x: it is no program")
    status = replace(WAITING, phase=Phase.FAILED, first_failure=failure)
    shown = [*end_report(status, {}), *run_summary(status)]
    shown += narrate(WAITING, replace(status, phase=Phase.RUNNING))
    text = "\n".join(shown)
    assert "first failure: the group of role reader on node a: it could not run its workers" in text
    assert text.count("cannot start /x: it is no program") == 3
    for untrue in ("pid", "rank", "-, round"):
        assert untrue not in text


def test_nodes_that_left_a_live_run_are_not_counted_as_its_nodes() -> None:
    left = replace(RUNNING, nodes=(*RUNNING.nodes, node("c", phase=Phase.STOPPED)))
    assert "2 nodes (from 2 to 2)" in "\n".join(run_summary(left))
    assert runs_table([left]).rows[0][4] == "2"


def test_a_node_that_gave_up_tells_why_while_the_run_waits_and_at_its_end() -> None:
    taken = "node id 'a' of b:1 is taken by a live agentd at a:1. Start one of them with another --node-id."
    out = replace(node("b", phase=Phase.FAILED, round=0), reason=taken)
    waits = replace(WAITING, nodes=(*WAITING.nodes, out), reason="1 of 2 members joined; missing: b")
    assert narrate(WAITING, waits) == [f"node b has no part: {taken}"]
    assert narrate(waits, waits) == []
    report = end_report(replace(waits, phase=Phase.FAILED, reason="only 1 of 2; missing: b"), {})
    assert f"  node b has no part: {taken}" in report
    same = replace(out, reason="only 1 of 2; missing: b")
    ended = replace(waits, phase=Phase.FAILED, nodes=(same,), reason=same.reason)
    assert "has no part" not in "\n".join(end_report(ended, {}))


def test_a_restart_tells_its_cause() -> None:
    restarting = replace(RUNNING, phase=Phase.RESTARTING, first_failure=FAILURE, reason="rank 3 failed")
    assert narrate(RUNNING, restarting) == [
        "rank 3 (default) on node b failed in round 1: killed by SIGKILL",
        "round 1 is being stopped to form another: rank 3 failed",
    ]


def failed() -> RunStatus:
    stopped = WorkerState.STOPPED
    return replace(
        RUNNING,
        phase=Phase.FAILED,
        first_failure=FAILURE,
        started_at=1_699_999_990.0,
        finished_at=1_700_000_001.0,
        nodes=(
            node("a", worker(0, stopped, signal=15), worker(1, stopped, signal=15), phase=Phase.FAILED),
            node(
                "b",
                worker(2, stopped, signal=15),
                worker(3, WorkerState.FAILED, signal=9),
                phase=Phase.FAILED,
            ),
        ),
    )


def test_the_end_report_names_the_first_failure_and_lists_the_others_as_torn_down() -> None:
    report = "\n".join(end_report(failed(), {}))
    assert report.startswith("run r failed (4 workers on 2 nodes, 1 round, 11 s)")
    assert (
        "first failure: rank 3 (role default, local rank 1) on node b, pid 103: killed by SIGKILL" in report
    )
    for fact in ("2023-11-1", "/e.json on node b", "/logs/1 on node b", "| line 2"):
        assert fact in report
    assert "torn down by agentd, not failed: ranks 0-2" in report
    assert "also failed" not in report


def test_the_end_report_names_later_failures_and_nodes_that_could_not_be_asked() -> None:
    status = failed()
    second = replace(FAILURE, rank=2, pid=102, signal=None, exit_code=1, time=FAILURE.time + 1)
    group = replace(status.nodes[1].groups[0], failures=(FAILURE, second))
    status = replace(status, nodes=(status.nodes[0], replace(status.nodes[1], groups=(group,))))
    report = "\n".join(end_report(status, {"a": Unreachable("a:7460")}))
    assert "also failed: rank 2 (default) on node b, pid 102: exit code 1" in report
    assert "torn down by agentd, not failed: ranks 0-1" in report
    assert "node a could not be asked: no agentd answers at a:7460" in report


def test_a_good_end_is_one_line() -> None:
    nodes = (node("a", worker(0, WorkerState.SUCCEEDED, exit_code=0), phase=Phase.SUCCEEDED, round=2),)
    done = replace(RUNNING, phase=Phase.SUCCEEDED, nodes=nodes, restart_count=1, round=2)
    assert end_report(done, {}) == ["run r succeeded (1 worker on 1 node, 2 rounds, 1 restart of 3)"]


def test_a_run_that_failed_without_a_worker_tells_the_reason() -> None:
    lonely = replace(WAITING, phase=Phase.FAILED, reason="1 of 2 nodes joined within 600 s; missing: b")
    assert "missing: b" in "\n".join(end_report(lonely, {}))


def test_plain_tables_are_aligned_and_cut_nothing() -> None:
    text = plain(TableData(columns=("A", "LONG"), rows=(("x" * 100, "1"), ("y", "2"))))
    lines = text.splitlines()
    assert [line.split() for line in lines] == [["A", "LONG"], ["x" * 100, "1"], ["y", "2"]]
    assert len({line.rfind(line.split()[1]) for line in lines}) == 1


def test_a_hub_that_is_silent_is_named_with_the_time_since_when() -> None:
    cut = replace(RUNNING, hub_address="a:7460", hub_unreachable_since=1_700_000_000.0)
    assert "hub a:7460 unreachable since" in "\n".join(run_summary(cut))
    assert "hub a:7460 unreachable since" in runs_table([cut]).rows[0][-1]
    assert "unreachable" not in "\n".join(run_summary(RUNNING))


def test_a_run_that_waits_for_members_says_until_when_and_how_one_joins() -> None:
    at = 1_700_000_000.0
    agents = tuple(replace(each, address=f"{each.node_id}:7460") for each in WAITING.nodes)
    waits = replace(WAITING, hub_address="a:7460", join_deadline=at, nodes=agents)
    told = f"  fails at {clock_time(at)} unless enough join: "
    assert told + "agentctl join r --nodes NODE --via a:7460" in run_summary(waits)
    # Agents in processes of their own have no agentd.
    assert told + "start more of its agents" in run_summary(replace(waits, nodes=WAITING.nodes))
    assert "fails at" not in "\n".join(run_summary(replace(waits, phase=Phase.RUNNING)))
    assert convert.run_status_from_message(convert.run_status_to_message(waits)) == waits


def test_a_runs_table_has_a_line_for_each_worker_or_for_a_group_without_any() -> None:
    rows = run_table(replace(RUNNING, nodes=(*RUNNING.nodes, node("c", phase=Phase.WAITING)))).rows
    assert [row[0] for row in rows] == ["a", "a", "b", "b", "c"]
    assert rows[-1][2] == "waiting"
    assert runs_table([RUNNING]).rows[0][:3] == ("r", "running", "1")


def test_json_has_the_protos_field_names_in_their_order_and_every_plain_field() -> None:
    found = to_dict(convert.run_status_to_message(failed()))
    assert list(found)[:4] == ["run_id", "incarnation", "phase", "round"]
    assert (found["phase"], found["restart_count"], found["missing"]) == ("PHASE_FAILED", 0, [])
    assert (found["first_failure"]["rank"], found["first_failure"]["signal"]) == (3, 9)
    assert "exit_code" not in found["first_failure"]
    first = found["nodes"][0]["groups"][0]["workers"][0]
    assert (first["rank"], first["local_rank"], first["pid"]) == (0, 0, 100)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (duration(0.24), "0.2 s"),
        (duration(75), "75 s"),
        (duration(3600), "60 min"),
        (duration(7300), "2 h 1 min"),
        (size(512), "512 B"),
        (size(1536), "1.5 KiB"),
        (size(3 * 2**30), "3.0 GiB"),
        (ranks([3, 1, 2, 7]), "1-3, 7"),
        (ranks([]), ""),
    ],
)
def test_numbers_read_well(said: str, expected: str) -> None:
    assert said == expected
