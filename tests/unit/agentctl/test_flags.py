"""Values of flags: what they mean and how a wrong one is named."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from agentctl import flags
from agentctl.flags import Std
from agentctl.hosts import Host, parse_hostfile, split_nodes


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (flags.parse_nnodes, "3", (3, 3)),
        (flags.parse_nnodes, "2:4", (2, 4)),
        (flags.parse_nproc, "8", 8),
        (flags.parse_nproc, "auto", "auto"),
        (flags.parse_nproc, "gpu", "gpu"),
        (flags.parse_numbers, "0-2,5", (0, 1, 2, 5)),
        (flags.parse_numbers, "3,3,1", (3, 1)),
        (flags.parse_pairs, "a=1, b=x=y,", {"a": "1", "b": "x=y"}),
        (flags.parse_seconds, "0", 0.0),
        (flags.parse_seconds, "2.5", 2.5),
        (flags.parse_seconds, "90s", 90.0),
        (flags.parse_seconds, "10m", 600.0),
        (flags.parse_seconds, "1.5h", 5400.0),
        (flags.parse_seconds, "2d", 172_800.0),
        (flags.parse_signal, "USR1", signal.SIGUSR1),
        (flags.parse_signal, "sigterm", signal.SIGTERM),
        (flags.parse_signal, "9", 9),
    ],
)
def test_a_good_value_is_read(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (flags.parse_nnodes, "0"),
        (flags.parse_nnodes, "4:2"),
        (flags.parse_nnodes, "1:"),
        (flags.parse_nnodes, "two"),
        (flags.parse_nproc, "0"),
        (flags.parse_nproc, "-1"),
        (flags.parse_nproc, "tpu"),
        (flags.parse_numbers, "5-2"),
        (flags.parse_numbers, ""),
        (flags.parse_numbers, "²"),
        (flags.parse_pairs, "a"),
        (flags.parse_pairs, "=1"),
        (flags.parse_seconds, "-1"),
        (flags.parse_seconds, "nan"),
        (flags.parse_seconds, "inf"),
        (flags.parse_seconds, "soon"),
        (flags.parse_seconds, "m"),
        (flags.parse_seconds, "-1m"),
        (flags.parse_seconds, "1m30s"),
        (flags.parse_signal, "0"),
        (flags.parse_signal, "65"),
        (flags.parse_signal, "NOPE"),
        (flags.parse_std, "4"),
        (flags.parse_std, "0:1,2"),
    ],
)
def test_a_bad_value_is_named(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|is no signal|ends before|fewest"):
        read(text)


def test_streams_are_chosen_for_all_or_by_local_rank() -> None:
    assert flags.parse_std("3").of(17) is Std.ALL
    by_rank = flags.parse_std("0:1,2:3")
    assert [by_rank.of(rank) for rank in range(3)] == [Std.OUT, Std.NONE, Std.ALL]


def test_environment_pairs_keep_all_after_the_first_equals_sign() -> None:
    assert flags.parse_env(["A=b=c", "A=", "X=1"]) == {"A": "", "X": "1"}


@pytest.mark.parametrize("item", ["=x", "NOVALUE", ""])
def test_a_bad_environment_pair_is_named(item: str) -> None:
    with pytest.raises(ValueError, match="NAME=VALUE"):
        flags.parse_env([item])


def test_a_hostfile_has_a_target_a_line() -> None:
    text = "# the fleet\nnode-a slots=4\n\n  node-b:7461   # the new one\nunix:/x.sock slots=2\n"
    assert parse_hostfile(text) == (Host("node-a", 4), Host("node-b:7461"), Host("unix:/x.sock", 2))


@pytest.mark.parametrize(
    ("text", "says"), [("a slots=0", "line 1"), ("a\nb weight=2", "line 2"), ("# none\n", "names no node")]
)
def test_a_bad_hostfile_names_the_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_hostfile(text)


def test_node_lists_may_be_given_in_pieces() -> None:
    assert split_nodes(["a, b", "", "c,"]) == ("a", "b", "c")
