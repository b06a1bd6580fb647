"""A host's connection to agentd: who hangs up first."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from agentd.host.link import SOCKET_NAME, AgentLink
from agentd.host.wire import FinishHost, Frame, FrameReader, Hello, Ready, encode
from agentd.procs.waiter import Waiter
from tests.support.waiting import wait_until

HELLO = Hello(
    run_id="r", incarnation=1, role="w", token="t", pid=1, start_time=1, boot_id="b", last_sequence=0
)


def test_agentd_can_speak_to_a_host_that_leaves_and_still_hears_its_last_word(tmp_path: Path) -> None:
    """A write to a host that had hung up would end the connection with the last word unread."""
    heard: list[Frame] = []
    problems: list[OSError] = []

    def be_agentd(listening: socket.socket) -> None:
        reader = FrameReader()
        with listening, listening.accept()[0] as host:
            while data := host.recv(65_536):
                heard.extend(reader.feed(data))
            try:
                host.sendall(encode(FinishHost(state="stopped", reason="asked", grace_s=1.0)))
            except OSError as error:
                problems.append(error)

    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(tmp_path / SOCKET_NAME))
    listening.listen()
    agentd = threading.Thread(target=be_agentd, args=(listening,))
    agentd.start()
    commands: list[object] = []
    with Waiter() as waiter:
        link = AgentLink(
            waiter, str(tmp_path), lambda: HELLO, commands.append, lambda: commands.append("lost")
        )
        waiter.wait(waiter.now())  # dials
        link.send(Ready(round=0, master_port=1))
        link.leave(30.0)
        link.close()
    agentd.join(30)
    assert [type(frame) for frame in heard] == [Hello, Ready]
    assert (problems, commands) == ([], []), "nobody acts on what is said to one that leaves"


def test_what_is_said_in_one_go_is_heard_in_one_go_wherever_in_a_wait_it_was_said(tmp_path: Path) -> None:
    """Also by a pump that is called after the link's own, in a wait that nothing else would end."""
    received: list[list[Frame]] = []

    def be_agentd(listening: socket.socket) -> None:
        reader = FrameReader()
        with listening, listening.accept()[0] as host:
            while data := host.recv(65_536):
                received.append(list(reader.feed(data)))

    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(tmp_path / SOCKET_NAME))
    listening.listen()
    agentd = threading.Thread(target=be_agentd, args=(listening,))
    agentd.start()
    with Waiter() as waiter:
        link = AgentLink(waiter, str(tmp_path), lambda: HELLO, lambda _frame: None, lambda: None)
        waiter.wait(waiter.now())  # dials
        wait_until(lambda: len(received) == 1)
        unsaid = [Ready(round=number, master_port=1) for number in range(3)]

        def say(_now: float) -> None:
            while unsaid:
                link.send(unsaid.pop())

        waiter.add_pump(say)
        waiter.wait(None)
        wait_until(lambda: len(received) == 2)
        link.leave(30.0)
        link.close()
    agentd.join(30)
    assert [[type(frame) for frame in frames] for frames in received] == [[Hello], [Ready] * 3]
