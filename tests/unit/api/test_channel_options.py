"""gRPC passes over an option it does not know without a word, so a name that is wrong would do nothing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from agentd.api.channel import CLIENT_OPTIONS, HUB_OPTIONS, SERVER_OPTIONS, Options


@pytest.mark.parametrize("options", [CLIENT_OPTIONS, HUB_OPTIONS, SERVER_OPTIONS])
def test_grpc_knows_every_option_that_is_set(options: Options) -> None:
    core = find_spec("grpc._cython.cygrpc")
    assert core is not None
    assert core.origin is not None
    words = Path(core.origin).read_bytes()
    assert [name for name, _ in options if name.encode() not in words] == []
    assert len({name for name, _ in options}) == len(options)
