"""The served runs as a fixture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.rpc.served import Serving, served_at


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Called and entered by a test, so that the server belongs to the test's loop."""
    return lambda: served_at(tmp_path)
