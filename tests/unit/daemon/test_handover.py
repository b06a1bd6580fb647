"""A handover is for the process it names, and only where there is something to hand over."""

from __future__ import annotations

import os

import pytest

from agentd.api.errors import HandoverRefused, InvalidSpec
from agentd.config.model import HostMode
from agentd.daemon.handover import Handover


def test_the_named_process_hands_over_and_says_so() -> None:
    begun: list[int] = []
    handover = Handover("n", HostMode.KEEP, lambda: begun.append(1))
    assert handover.ask(os.getpid()) == os.getpid()
    assert begun == [1]


@pytest.mark.parametrize("mode", list(HostMode))
def test_a_call_meant_for_the_last_agentd_does_nothing_to_this_one(mode: HostMode) -> None:
    begun: list[int] = []
    assert Handover("n", mode, lambda: begun.append(1)).ask(os.getpid() + 1) == os.getpid()
    assert not begun


def test_where_workers_end_with_agentd_it_is_refused() -> None:
    with pytest.raises(HandoverRefused, match="host_mode stop"):
        Handover("n", HostMode.STOP, lambda: None).ask(os.getpid())


def test_a_call_must_name_a_process() -> None:
    with pytest.raises(InvalidSpec, match="pid"):
        Handover("n", HostMode.KEEP, lambda: None).ask(0)
