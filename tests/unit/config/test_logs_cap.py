"""How much of a worker's output is kept can be chosen, or given up."""

from __future__ import annotations

import pytest

from agentd.config import Config, ConfigError, load


def loaded(text: str) -> Config:
    environ = {"HOME": "/h", "AGENTD_LOGS_CAP": text}
    return load(flags={}, environ=environ, file_text="", file_name="", uid=1, hostname="n").config


@pytest.mark.parametrize(("text", "cap"), [("", 1 << 30), ("0", 0), ("1MiB", 1 << 20), ("3GiB", 3 << 30)])
def test_a_cap_is_a_size_or_none(text: str, cap: int) -> None:
    assert loaded(text).logs.cap == cap


@pytest.mark.parametrize("text", ["1", "1023KiB", "-1MiB", "much"])
def test_a_cap_that_keeps_next_to_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"logs\.cap"):
        loaded(text)
