"""Texts in the journal: a group's state, a hub's record, a Stop, a drain; and the spec beside them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from agentd.api.types import Drain, DrainMode, Phase, StopRequest, StopScope
from agentd.core.group import GroupState, HostState
from agentd.groups import layout, left
from agentd.groups.records import GroupRow
from agentd.groups.remembered import UNREADABLE, _hub_row
from agentd.groups.wish import drain_text, read_drain, read_wish, wish_text
from agentd.hub.record import read_record
from agentd.hub.state import HubRecord, RecordedMember
from agentd.procs.identity import boot_id
from tests.support.hosting import host_spec
from tests.unit.fuzz.hostile import examples, json_of

STATE = GroupState(
    role="default", local_world_size=2, stop_grace=5.0, phase=Phase.RUNNING, host=HostState.NONE, round=3
)
SPEC = host_spec(Path("/tmp"), "sleep", "1", mode="keep")


def fields_of(text: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda: json.loads(text))


@examples(25)
@given(
    state=json_of(fields_of(left.state_text(STATE))),
    spec=json_of(fields_of(json.dumps(asdict(SPEC), default=dict))),
)
def test_what_is_left_of_a_group_is_found_whole_or_not_at_all(state: bytes, spec: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, layout.SPEC_FILE).write_bytes(spec)
        row = GroupRow(
            run_id="r", incarnation=1, role="default", phase=Phase.RUNNING, directory=folder,
            boot_id=boot_id(), state=state.decode(errors="replace"), token="t" * 32,
        )  # fmt: skip
        found = left.find(row)
        if found is not None:
            left.state_text(found.state)
            left.as_member(found.state)
            layout.prepare(found.spec, folder)


MEMBER = RecordedMember(
    node_id="a", role="default", agent_uid="u", address="a:1", name="a", local_world_size=2
)
RECORD = json.dumps(asdict(HubRecord(round=3, members=(MEMBER,), outcome=None, reason="x")))


@examples(25)
@given(text=json_of(fields_of(RECORD)))
@example(text=b'{"members": [7]}')
@example(text=b'{"members": [{}]}')
@example(text=b'{"outcome": "eaten"}')
@example(text=b'{"first_failure": {"rank": "x"}}')
@example(text=b'{"round": "many"}')
@example(text=b'{"members": 7}')
def test_a_hubs_record_that_is_taken_for_readable_can_be_read(text: bytes) -> None:
    try:
        row = _hub_row("r", 1, text.decode(errors="replace"))
    except UNREADABLE:
        return
    record = read_record(row.record)
    assert record.round + record.restart_count >= 0
    assert all(member.role.encode() for member in record.members if member.role)


WISH = wish_text(StopRequest(run_id="r", scope=StopScope.LEAVE, reason="x", grace=3.0))


@examples(35)
@given(text=json_of(fields_of(WISH)))
def test_a_stop_is_read_or_there_is_none(text: bytes) -> None:
    wish = read_wish(text.decode(errors="replace"), 7)
    assert wish is None or wish.incarnation == 7


@examples(35)
@given(text=json_of(fields_of(drain_text(Drain(mode=DrainMode.MOVE, since=1.0)))))
def test_a_drain_is_read_or_refused(text: bytes) -> None:
    with contextlib.suppress(ValueError, RecursionError):
        read_drain(text.decode(errors="replace"))
