"""A rig for each test; what it leaves behind is found by the checks of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.elastic.rig import PlainRendezvous, Rig
from tests.support.waiting import wait_until


@pytest.fixture
def plain() -> PlainRendezvous:
    return PlainRendezvous()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.waiter.close()
    wait_until(lambda: not rig.left(), what="no process of the rig is left")
