"""The agent's end of the way back from a function worker, against whatever the other end does."""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from agentd.elastic.multiprocessing.functions.channel import HEADER, PIECE_BYTES, ValueChannel
from agentd.procs.waiter import Waiter


class Ends:
    """Both ends: the channel in its waiter, and what a worker would hold."""

    def __init__(self) -> None:
        self.waiter = Waiter()
        self.channel = ValueChannel(self.waiter)
        self.worker = socket.socket(fileno=os.dup(self.channel.theirs))
        self.channel.handed_over()

    def serve(self) -> None:
        self.waiter.wait(time.monotonic())

    def close(self) -> None:
        self.worker.close()
        self.channel.close()
        self.channel.close()
        self.waiter.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def _message(value: object) -> bytes:
    data = pickle.dumps(value)
    return HEADER.pack(len(data)) + data


def test_a_value_arrives_in_pieces_of_any_size_and_is_acknowledged_once_it_is_whole(ends: Ends) -> None:
    for byte in _message("value"):
        assert not ends.channel.arrived
        ends.worker.send(bytes([byte]))
        ends.serve()
    assert (ends.channel.arrived, ends.channel.value, ends.channel.problem) == (True, "value", "")
    ends.worker.settimeout(20)
    assert len(ends.worker.recv(10)) == 1


def test_a_read_takes_no_more_than_a_piece(ends: Ends) -> None:
    message = _message(b"x" * (3 * PIECE_BYTES))
    ends.worker.setblocking(False)
    sent, rounds = 0, 0
    while not ends.channel.arrived:
        with suppress(BlockingIOError):
            sent += ends.worker.send(message[sent:])
        ends.serve()
        rounds += 1
    assert rounds > 3
    assert ends.channel.value == b"x" * (3 * PIECE_BYTES)


@pytest.mark.parametrize("start", [b"", b"\0\0\0", _message("value")[:-1]])
def test_a_hang_up_before_the_end_is_no_value_and_keeps_nobody_busy(ends: Ends, start: bytes) -> None:
    ends.worker.send(start)
    ends.worker.close()
    ends.channel.drain()
    assert not ends.channel.arrived
    assert len(ends.waiter.descriptors()) == 3, "its own alone"


def test_what_a_dead_worker_sent_is_read_though_a_descendant_holds_its_end(ends: Ends) -> None:
    ends.worker.send(_message([1, 2]))
    ends.channel.drain()
    assert ends.channel.value == [1, 2]


def test_nothing_sent_is_nothing_and_does_not_wait(ends: Ends) -> None:
    ends.channel.drain()
    assert not ends.channel.arrived


def test_a_value_that_cannot_be_loaded_is_told_and_acknowledged(ends: Ends) -> None:
    data = b"cno_such_module\nName\n."
    ends.worker.send(HEADER.pack(len(data)) + data)
    ends.channel.drain()
    assert ends.channel.arrived
    assert ends.channel.problem == "ModuleNotFoundError: No module named 'no_such_module'"
    ends.worker.settimeout(20)
    assert len(ends.worker.recv(10)) == 1


@pytest.mark.parametrize("length", [1 << 62, (1 << 64) - 1])
def test_a_length_beyond_all_memory_is_told(ends: Ends, length: int) -> None:
    ends.worker.send(HEADER.pack(length))
    ends.channel.drain()
    assert "do not fit into this process' memory" in ends.channel.problem


def test_a_worker_that_hung_up_after_its_value_needs_no_acknowledgement(ends: Ends) -> None:
    ends.worker.send(_message(None))
    ends.worker.close()
    ends.channel.drain()
    assert (ends.channel.arrived, ends.channel.value) == (True, None)
