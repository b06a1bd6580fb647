"""Targets are read the same way everywhere."""

from __future__ import annotations

import pytest

from agentd.api.errors import InvalidSpec
from agentd.api.targets import Target, default_socket, parse_target


@pytest.mark.parametrize(
    ("text", "target", "again"),
    [
        ("unix:/run/a.sock", Target(path="/run/a.sock"), "unix:/run/a.sock"),
        ("unix:///run/a.sock", Target(path="/run/a.sock"), "unix:/run/a.sock"),
        ("node-1", Target(host="node-1", port=7460), "node-1:7460"),
        ("node-1.example:80", Target(host="node-1.example", port=80), "node-1.example:80"),
        ("127.0.0.1:0", Target(host="127.0.0.1", port=0), "127.0.0.1:0"),
        ("[::1]", Target(host="::1", port=7460), "[::1]:7460"),
        ("[fe80::1%eth0]:9", Target(host="fe80::1%eth0", port=9), "[fe80::1%eth0]:9"),
    ],
)
def test_a_target_is_read_and_printed(text: str, target: Target, again: str) -> None:
    assert parse_target(text) == target
    assert str(target) == again
    assert parse_target(again) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "a:",
        "a:b",
        "a:65536",
        "a:-1",
        "::1",
        "[::1",
        "[::1]80",
        "unix:run.sock",
        "a b",
        "a/b",
        "[a b:]:1",
    ],
)
def test_what_is_no_target_is_refused_and_named(text: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        parse_target(text)
    assert repr(text) in str(refused.value)


def test_the_default_socket_is_in_a_place_of_the_user() -> None:
    assert default_socket({"XDG_RUNTIME_DIR": "/run/user/7"}, 7).path == "/run/user/7/agentd/agentd.sock"
    assert default_socket({}, 0).path == "/run/agentd/agentd.sock"
    assert default_socket({}, 7).path == "/tmp/agentd-7/agentd.sock"
