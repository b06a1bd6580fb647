"""A reader of logs goes on behind what was removed, also after its connection broke."""

from __future__ import annotations

import pytest

from agentd.api import convert
from agentd.api.errors import Unreachable
from agentd.api.types import LogGap, LogsRequest, LogStream
from agentd.v1 import agent_service_pb2 as service
from agentd_client.logs import LogReading
from agentd_client.nodes import Node
from agentd_client.plan import Arrived, Emit, Ended, Open
from agentd_client.report import LogCut

KEY = "logs:unix:/a"


@pytest.mark.parametrize(("size", "goes_on_at"), [(100, 150), (0, 0)])
def test_what_was_removed_is_told_and_not_asked_for_again(size: int, goes_on_at: int) -> None:
    gap = LogGap(
        role="w", round=2, rank=1, local_rank=1, stream=LogStream.STDERR, offset=50, size=size, node_id="a"
    )
    reading = LogReading(LogsRequest(run_id="r", follow=True), [Node(name="a", target="unix:/a")], 0.0)
    list(reading.act(0.0))
    message = service.LogsResponse(gap=convert.log_gap_to_message(gap))
    assert list(reading.take(Arrived(KEY, message), 1.0)) == [Emit(LogCut(gap=gap, source="a"))]
    list(reading.take(Ended(KEY, Unreachable("unix:/a")), 2.0))
    (again,) = reading.act(60.0)
    assert isinstance(again, Open)
    assert isinstance(again.call.request, service.LogsRequest)
    (position,) = again.call.request.resume
    assert (position.role, position.round, position.local_rank, position.offset) == ("w", 2, 1, goes_on_at)
