"""Helpers under torch's names."""

from __future__ import annotations

import logging
import socket

import pytest

from agentd.elastic.utils import get_env_variable_or_raise, get_socket_with_port, macros
from agentd.elastic.utils.distributed import create_c10d_store, get_free_port
from agentd.elastic.utils.logging import get_logger


def test_an_environment_variable_or_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "")
    monkeypatch.delenv("ABSENT", raising=False)
    assert get_env_variable_or_raise("THERE") == ""
    with pytest.raises(ValueError, match="ABSENT is not set"):
        get_env_variable_or_raise("ABSENT")


def test_a_socket_on_a_free_port_takes_connections() -> None:
    with get_socket_with_port() as listening:
        with socket.create_connection(("localhost", listening.getsockname()[1]), 5):
            pass
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", get_free_port()))


def test_macros_in_texts() -> None:
    args = ["--rank=${local_rank}", "${other} $$", 3, macros.local_rank]
    assert macros.substitute(args, "7") == ["--rank=7", "${other} $", 3, "7"]


def test_a_logger_has_the_caller_s_name_and_the_environment_s_level(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("LOGLEVEL", raising=False)
    assert (get_logger().name, get_logger("some").level) == (__name__, logging.WARNING)
    for text, level in (("debug", logging.DEBUG), ("35", 35)):
        monkeypatch.setenv("LOGLEVEL", text)
        assert get_logger("some").level == level
    monkeypatch.setenv("LOGLEVEL", "loud")
    assert get_logger("some").level == logging.WARNING
    assert "LOGLEVEL=loud names no level" in caplog.text


def test_a_store_for_several_needs_a_port_that_all_know() -> None:
    with pytest.raises(ValueError, match="server_port is missing"):
        create_c10d_store(True, "localhost", world_size=2)
