"""Small parts of the handler of agentd: its options, its addresses, what it tells and answers of failures."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any

import pytest

from agentd.api.types import Failure
from agentd.elastic.multiprocessing.errors import ProcessFailure
from agentd.elastic.rendezvous.api import RendezvousParameters
from agentd.hub import route
from agentd.hub.failures import answered, reported
from agentd.hub.handler import create_handler
from agentd.hub.handler_options import HandlerOptions, new_node_id
from agentd.hub.mailbox import Mailbox
from agentd.procs.waiter import Waiter


def parameters(**options: object) -> RendezvousParameters:
    return RendezvousParameters("agentd", "hub.example:7460", "job", 1, 2, None, **options)


def test_options_are_read_from_values_and_from_their_texts() -> None:
    as_text = parameters(local_world_size="4", join_timeout="30", last_call_timeout="0.5", roles="a, b")
    as_values = parameters(local_world_size=4, join_timeout=30, last_call_timeout=0.5, roles=("a", "b"))
    one, other = (HandlerOptions.read(given) for given in (as_text, as_values))
    for options in (one, other):
        assert (options.local_world_size, options.roles) == (4, ("a", "b"))
        spec = options.rendezvous(1, 2)
        assert (spec.min_members, spec.max_members, spec.join_timeout, spec.last_call) == (1, 2, 30.0, 0.5)


def test_the_first_contact_takes_no_longer_than_the_shorter_of_the_two_times() -> None:
    given: list[dict[str, Any]] = [{}, {"join_timeout": 2}, {"hub_timeout": 3}]
    given += [{"join_timeout": 2, "hub_timeout": 3}, {"join_timeout": 3000}]
    assert [HandlerOptions(**times).first_patience for times in given] == [600, 2, 3, 2, 600]


@pytest.mark.parametrize("option", ["join_timeout", "lease", "max_restarts", "local_world_size"])
def test_an_option_that_is_no_number_is_refused_by_name(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        HandlerOptions.read(parameters(**{option: "soon"}))


def test_an_option_of_another_backend_is_told_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert HandlerOptions.read(parameters(store_type="file", node_id="n")).node_id == "n"
    assert "store_type" in caplog.text


def test_node_ids_name_host_and_process_and_never_repeat() -> None:
    made = {new_node_id() for _ in range(100)}
    assert len(made) == 100
    assert all(f"-{os.getpid()}-" in name for name in made)


def test_an_endpoint_that_is_no_target_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="endpoint"):
        create_handler(RendezvousParameters("agentd", "http://hub:1/x", "job", 1, 1))


def test_a_handler_that_was_never_used_holds_nothing() -> None:
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    handler = create_handler(parameters())
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert handler.shutdown()
    assert handler.shutdown()
    assert handler.is_closed()
    assert (handler.get_backend(), handler.get_run_id(), handler.num_nodes_waiting()) == ("agentd", "job", 0)


@pytest.mark.parametrize(
    ("given", "endpoint", "advertised", "expected"),
    [
        ("10.0.0.9", "hub.example:7460", "hub.example:7460", "10.0.0.9:0"),
        ("", "unix:/run/agentd.sock", "unix:/run/agentd.sock", "127.0.0.1:0"),
        ("", "unix:/run/agentd.sock", "10.0.0.1:7460", "10.0.0.1:0"),
        ("", "127.0.0.1:7460", "10.0.0.1:7460", "10.0.0.1:0"),
        ("", "127.0.0.1:7460", "127.0.0.1:7460", "127.0.0.1:0"),
        ("", "127.0.0.1:7460", "", "127.0.0.1:0"),
        ("fd00::5", "[fd00::1]:7460", "[fd00::1]:7460", "[fd00::5]:0"),
    ],
)
def test_workers_are_reached_where_others_can(
    given: str, endpoint: str, advertised: str, expected: str
) -> None:
    assert route.address_of_agent(given, endpoint, advertised) == expected


def test_without_a_way_to_the_hub_the_loopback_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "local_address_to", lambda _host, _port: "")
    assert route.address_of_agent("", "hub.example:7460", "hub.example:7460") == "hub.example:0"


def own_failure(rank: int, exitcode: int, exited_at: float) -> ProcessFailure:
    return ProcessFailure(rank, 100 + rank, exitcode, "", exited_at=exited_at)


def test_failures_are_told_oldest_first_with_their_age_and_log_folder() -> None:
    now = time.time()
    told = reported({3: own_failure(1, -9, now), 2: own_failure(0, 7, now - 5)}, {2: "/logs/0"})
    (first, older), (second, younger) = told
    assert (first.rank, first.exit_code, first.signal, first.log_dir) == (2, 7, None, "/logs/0")
    assert (second.rank, second.exit_code, second.signal, second.log_dir) == (3, None, 9, "")
    assert older == pytest.approx(5.0, abs=1.0)
    assert younger == pytest.approx(0.0, abs=1.0)


def test_the_first_failure_of_another_machine_leads_whatever_its_clock_says() -> None:
    first = Failure(node_id="b", rank=5, local_rank=1, pid=77, signal=11, message="boom", time=2e9)
    own = own_failure(0, 1, 1e9)
    answer = answered(first, "a", {0: own})
    assert list(answer) == [5, 0]
    remote = answer[5]
    assert (remote.local_rank, remote.pid, remote.exitcode, remote.message_text()) == (1, 77, -11, "boom")
    assert remote.timestamp <= own.timestamp
    assert answer[0] is own


def test_an_own_first_failure_is_answered_with_all_that_is_known_of_it() -> None:
    own = {0: own_failure(0, 1, 1e9), 1: own_failure(1, 3, 1e9)}
    first = Failure(node_id="a", rank=1, local_rank=1, pid=101, exit_code=3)
    answer = answered(first, "a", own)
    assert list(answer) == [1, 0]
    assert answer[1] is own[1]


def test_a_word_of_another_thread_ends_the_wait_and_none_is_lost() -> None:
    heard: list[int] = []
    mailbox: Mailbox[int] = Mailbox()
    with Waiter() as waiter:
        waiter.add(mailbox, lambda: heard.extend(mailbox.take()))
        speaker = threading.Thread(target=lambda: [*map(mailbox.put, range(1000))])
        speaker.start()
        assert waiter.wait_until(lambda: len(heard) == 1000, time.monotonic() + 30)
        speaker.join()
        waiter.remove(mailbox)
    mailbox.close()
    assert heard == list(range(1000))
