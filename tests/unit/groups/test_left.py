"""What the journal keeps of a worker group is all of it, and what nobody can read is no group."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.api.types import Phase, StopRequest, StopScope, WorkerState, WorkerStatus
from agentd.core import group_events as ev
from agentd.core.assignment import Assignment
from agentd.core.group import Ending, GroupState, HostState
from agentd.groups.left import as_member, find, state_text
from agentd.groups.records import GroupRow
from agentd.groups.wish import read_wish, wish_text
from agentd.host import wire
from agentd.host.shaped import build
from agentd.host.wire import HostSpec, as_json
from agentd.hub.messages import MemberCondition, MemberState
from agentd.procs.identity import boot_id

NEW = GroupState(role="default", local_world_size=2, stop_grace=3.0)
RAN = replace(NEW, round=4, phase=Phase.RUNNING, host=HostState.LIVE, host_heard=True)
FIELDS: dict[str, Any] = {**dict.fromkeys(Assignment.__dataclass_fields__, 1), "master_addr": "a"}
PLACE = Assignment(**FIELDS)

states = st.builds(
    GroupState,
    role=st.text(max_size=5),
    local_world_size=st.integers(0, 9),
    stop_grace=st.floats(0, 99),
    phase=st.sampled_from(Phase),
    host=st.sampled_from(HostState),
    group_rank=st.none() | st.integers(0, 9),
    placement=st.none() | st.just(PLACE),
    failed=st.none() | st.builds(ev.WorkersFailed, st.integers(0, 9), ages=st.tuples(st.floats(0, 9))),
    workers=st.lists(
        st.builds(
            WorkerStatus,
            role=st.text(max_size=3),
            rank=st.integers(0, 9),
            local_rank=st.integers(0, 9),
            role_rank=st.integers(0, 9),
            pid=st.integers(0, 9),
            state=st.sampled_from(WorkerState),
            exit_code=st.none() | st.integers(0, 255),
        ),
        max_size=2,
    ).map(tuple),
    reason=st.text(max_size=9),
    ending=st.none()
    | st.builds(Ending, phase=st.sampled_from(Phase), reason=st.text(), kill_at=st.floats(0, 9)),
    overdue_at=st.none() | st.floats(0, 9),
)


@given(state=states)
def test_a_state_is_read_as_it_was_written(state: GroupState) -> None:
    assert build(GroupState, json.loads(state_text(state)), "state") == state


@pytest.mark.parametrize(
    ("state", "condition"),
    [
        (NEW, None),
        (replace(NEW, awaiting_place=True), MemberCondition.JOINING),
        (RAN, MemberCondition.RUNNING),
        (replace(RAN, phase=Phase.RESTARTING, stopped_round=4), MemberCondition.RUNNING),
        (replace(RAN, phase=Phase.DONE), MemberCondition.DONE),
        (replace(RAN, gone_round=4, awaiting_place=True), MemberCondition.JOINING),
        (replace(RAN, phase=Phase.STOPPED), None),
    ],
)
def test_the_hub_is_told_what_the_group_has(state: GroupState, condition: MemberCondition | None) -> None:
    member = as_member(state)
    assert (member and member.condition) == condition
    assert member is None or (member.role, member.round) == ("default", state.round)


def row(folder: Path, spec: dict[str, Any] | None = None, **changes: Any) -> GroupRow:
    """A group of this boot whose host is gone, with its spec on disk."""
    known = HostSpec(
        run_id="job", incarnation=7, role="default", node_id="n", token="", local_world_size=2, argv=("x",),
        env={}, cwd="/", stop_grace_s=3.0, monitor_interval_s=0.1, log_root=str(folder), mode="keep",
    )  # fmt: skip
    (folder / "spec.json").write_text(json.dumps({**asdict(known), **(spec or {})}))
    fields: dict[str, Any] = {
        "run_id": "job", "incarnation": 7, "role": "default", "phase": Phase.RUNNING, "token": "t",
        "boot_id": boot_id(), "directory": str(folder), "state": state_text(RAN), "sequence": 3,
    }  # fmt: skip
    return GroupRow(**{**fields, **changes})


def test_a_group_is_found_as_it_was(tmp_path: Path) -> None:
    left = find(row(tmp_path, host_pid=99, host_start_time=1))
    assert left is not None
    assert (left.state, left.sequence, left.spec.token) == (RAN, 3, "t")
    assert left.host is not None
    assert left.host.pid == 99


def test_a_group_whose_host_the_row_does_not_know_begins_again_after_all_its_rounds(tmp_path: Path) -> None:
    ending = Ending(phase=Phase.STOPPED, reason="asked to", kill_at=9.0)
    known = row(tmp_path, host_pid=99, host_start_time=1, state=state_text(replace(RAN, ending=ending)))
    started = wire.Started(round=6, workers=(), restart_count=2, sequence=8)
    (tmp_path / "host.jsonl").write_bytes(as_json(started) + b"\n")
    left = find(known, begin_again=True)
    assert left is not None
    assert (left.state.host, left.state.round, left.state.gone_round) == (HostState.NONE, 6, 6)
    assert left.restart_count == 2
    assert (left.state.ending, left.sequence, left.member) == (
        ending,
        8,
        MemberState(role="default", local_world_size=2, condition=MemberCondition.JOINING, round=6),
    )


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        ({}, {"state": ""}),
        ({}, {"state": "[1"}),
        ({}, {"state": "{}"}),
        ({}, {"state": state_text(RAN).replace('"running"', '"walking"')}),
        ({}, {"boot_id": "another"}),
        ({}, {"directory": "/nowhere"}),
        ({"mode": "stop"}, {}),
        ({"role": "other"}, {}),
        ({"argv": 5}, {}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_or_does_not_live_on_is_no_group(
    tmp_path: Path, spec: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert find(row(tmp_path, spec, **changes)) is None


@pytest.mark.parametrize("grace", [None, 0.0, 2.5])
@pytest.mark.parametrize("scope", list(StopScope))
def test_a_stop_is_read_as_it_was_asked_for(scope: StopScope, grace: float | None) -> None:
    asked = StopRequest(run_id="job", incarnation=7, scope=scope, grace=grace, reason='"so"')
    assert read_wish(wish_text(asked), 7) == asked


@pytest.mark.parametrize("text", ["", "5", "{}", "[]", '{"run_id": 5}', '{"run_id": "r", "scope": "all"}'])
def test_what_nobody_can_read_is_no_stop(text: str) -> None:
    assert read_wish(text, 7) is None
