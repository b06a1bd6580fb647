"""Agents whose ranks are known: rounds kept apart, others brought along, errors that name who and what."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentd.elastic import LocalElasticAgent, RoundLogsSpecs, WorkerSpec, WorkerState
from agentd.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousInfo,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from agentd.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from agentd.elastic.utils.distributed import create_c10d_store
from agentd.elastic.utils.ports import HeldPort
from agentd.elastic.utils.stores import InMemoryStore
from agentd.procs import procfs
from tests.support.waiting import wait_until

RANK_ZERO = """
import sys
from agentd.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
handler = StaticTCPRendezvous("localhost", int(sys.argv[1]), 0, 2, "run", 60)
handler.next_rendezvous()
sys.stdin.read()
handler.shutdown()
"""
"""Rank 0 of two, until its stdin ends."""


@pytest.fixture
def port() -> Iterator[int]:
    held = HeldPort()
    yield held.number
    held.close()


def _handler(port: int, rank: int, size: int = 2, timeout: float = 60) -> StaticTCPRendezvous:
    return StaticTCPRendezvous("localhost", port, rank, size, "run", timeout)


@contextmanager
def _closing(*handlers: StaticTCPRendezvous) -> Iterator[None]:
    try:
        yield
    finally:
        for handler in reversed(handlers):  # rank 0 last: the others still talk to it
            handler.shutdown()


def _meet(*handlers: StaticTCPRendezvous) -> list[RendezvousInfo]:
    found: dict[int, RendezvousInfo] = {}

    def join(handler: StaticTCPRendezvous) -> None:
        found[handler.rank] = handler.next_rendezvous()

    threads = [threading.Thread(target=join, args=(handler,)) for handler in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[handler.rank] for handler in handlers]


def test_no_round_reads_what_another_wrote_and_workers_meet_anew(port: int) -> None:
    first, second = _handler(port, 0), _handler(port, 1)
    with _closing(first, second):
        before = _meet(first, second)
        before[0].store.set("torchelastic/assigned_ranks/1", "old")
        after = _meet(first, second)
        assert not after[1].store.check(["torchelastic/assigned_ranks/1"])
        where = {info.bootstrap_store_info for info in before + after}
        assert {info.master_addr for info in where} == {"localhost"}
        assert len({info.master_port for info in where} - {port}) == 2
        assert (first.get_backend(), first.get_run_id(), first.use_agent_store) == ("static", "run", False)


def test_who_restarts_alone_is_seen_waiting_by_the_others(port: int) -> None:
    handlers = [_handler(port, rank, 3) for rank in range(3)]
    with _closing(*handlers):
        _meet(*handlers)
        assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0, 0]
        alone = threading.Thread(target=handlers[1].next_rendezvous)
        alone.start()
        wait_until(lambda: handlers[0].num_nodes_waiting() == handlers[2].num_nodes_waiting() == 1)
        _meet(handlers[0], handlers[2])
        alone.join()
        assert [handler.num_nodes_waiting() for handler in handlers] == [0, 0, 0]


def test_an_agent_that_begins_anew_does_not_join_the_round_it_died_in(port: int) -> None:
    first, second = _handler(port, 0), _handler(port, 1)
    _meet(first, second)
    second.shutdown()
    reborn = _handler(port, 1)
    with _closing(first, reborn):
        comes = threading.Thread(target=reborn.next_rendezvous)
        comes.start()
        wait_until(lambda: first.num_nodes_waiting() == 1, what="the one that began anew")
        first.next_rendezvous()
        comes.join()


def test_a_round_that_is_not_complete_in_time_names_who_is_missing(port: int) -> None:
    lonely = _handler(port, 0, 20, timeout=1.0)
    with _closing(lonely), pytest.raises(RendezvousTimeoutError, match=r"20 agents.* 1, 2, .*, 16 \.\.\."):
        lonely.next_rendezvous()


def test_a_store_that_is_not_there_and_a_port_that_is_taken_name_the_address(port: int) -> None:
    with pytest.raises(RendezvousConnectionError, match=rf"'run': the store at localhost:{port} cannot be"):
        _handler(port, 1, timeout=0.1).next_rendezvous()
    server = _handler(port, 0, 1)
    with _closing(server):
        server.next_rendezvous()
        with pytest.raises(RendezvousConnectionError, match=rf"cannot serve at port {port}.*another port"):
            _handler(port, 0, 1).next_rendezvous()


def test_an_ipv6_address_is_named_in_brackets(port: int) -> None:
    with pytest.raises(RendezvousConnectionError, match=rf"the store at \[::1\]:{port} cannot be"):
        StaticTCPRendezvous("::1", port, 1, 2, "run", 0.1).next_rendezvous()
    alone = StaticTCPRendezvous("::1", port, 0, 2, "run", 0.1, store=InMemoryStore())
    with pytest.raises(RendezvousTimeoutError, match=rf"round 1 at \[::1\]:{port} is not complete"):
        alone.next_rendezvous()


def test_workers_go_on_when_rank_zero_has_gone_and_meet_it_again_when_it_is_back(
    port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.elastic.rendezvous.static_tcp_rendezvous.PATIENCE_S", 0.2)
    monkeypatch.setattr("agentd.elastic.rendezvous.static_tcp_rendezvous.LINGER_S", 0.0)
    first, second = _handler(port, 0), _handler(port, 1)
    _meet(first, second)
    first.shutdown()
    with caplog.at_level(logging.WARNING):
        assert [second.num_nodes_waiting(), second.num_nodes_waiting()] == [0, 0]
    assert [record.getMessage() for record in caplog.records if "the workers go on" in record.getMessage()]
    reborn = _handler(port, 0)
    with _closing(reborn, second):
        assert [info.rank for info in _meet(reborn, second)] == [0, 1]


def test_a_look_at_a_frozen_rank_zero_holds_an_agent_up_for_half_a_second_and_then_ever_less_often(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.elastic.rendezvous.static_tcp_rendezvous.LINGER_S", 0.0)
    monkeypatch.setattr("agentd.elastic.rendezvous.static_tcp_rendezvous.FIRST_LOOK_AGAIN_S", 0.2)
    serve = [sys.executable, "-c", RANK_ZERO, str(port)]
    second = _handler(port, 1)
    with subprocess.Popen(serve, stdin=subprocess.PIPE) as rank_zero, _closing(second):
        second.next_rendezvous()
        assert second.num_nodes_waiting() == 0
        rank_zero.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: (stat := procfs.read_stat(rank_zero.pid)) and stat.state == "T")
            looks = [_look_when_due(second) for _ in range(3)]
            assert [pause for _, pause in looks] == [0.4, 0.8, 1.6], "before the look after the next"
            assert max(took for took, _ in looks) < 2.5, "for less than others are waited for"
        finally:
            rank_zero.send_signal(signal.SIGCONT)
        second._look_again_at = 0.0
        assert second.num_nodes_waiting() == 0
        assert not second._lost
        rank_zero.communicate(timeout=60)


def _look_when_due(handler: StaticTCPRendezvous) -> tuple[float, float]:
    """How long the next look takes, and the pause that doubles with it."""
    wait_until(lambda: time.monotonic() >= handler._look_again_at)
    began = time.monotonic()
    assert handler.num_nodes_waiting() == 0
    return time.monotonic() - began, handler._look_again_s


def test_a_given_store_is_used_and_left_open() -> None:
    store = InMemoryStore()
    handlers = [StaticTCPRendezvous("there", 29500, rank, 2, "run", 20, store=store) for rank in range(2)]
    infos = _meet(*handlers)
    assert {info.bootstrap_store_info.master_addr for info in infos} == {"there"}
    assert all(handler.shutdown() and not handler.use_agent_store for handler in handlers)


def test_a_stop_ends_the_wait_for_the_others(port: int, tmp_path: Path) -> None:
    for rank in (0, 1):  # waiting for members, and waiting for the server
        handler = _handler(port, rank, timeout=600)
        spec = WorkerSpec("w", 1, handler, entrypoint="true")
        agent = LocalElasticAgent(spec, RoundLogsSpecs(str(tmp_path)))
        stopper = threading.Timer(0.2, agent.request_stop)
        stopper.start()
        with _closing(handler):
            assert agent.run().state is WorkerState.STOPPED
        stopper.join()


@pytest.mark.torch
@pytest.mark.allow_leak("file descriptors", reason="torch's event loop keeps a pipe for the whole process")
def test_workers_share_the_agents_store_if_it_is_torch_s() -> None:
    store = create_c10d_store(is_server=True, server_addr="localhost", timeout=20)
    handler = StaticTCPRendezvous("localhost", 29500, 0, 1, "run", 20, store=store)
    (info,) = _meet(handler)
    assert handler.use_agent_store
    assert info.bootstrap_store_info == RendezvousStoreInfo("localhost", 29500)
