"""A journal that has time: how long a slow disk is waited for is what few of these tests are about."""

from __future__ import annotations

import pytest

from agentd.groups import journal
from tests.support.waiting import PATIENCE_S


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are about it set a shorter one."""
    monkeypatch.setattr(journal, "PATIENCE", PATIENCE_S)
