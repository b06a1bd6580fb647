"""Of more ended runs than are shown, each is still told of when somebody asks for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from agentd.api.errors import RunNotFound
from agentd.api.types import Phase
from agentd.groups import roster
from tests.support.noding import one_node, program, run_spec

pytestmark = pytest.mark.asyncio


async def test_a_run_that_newer_ones_pushed_out_is_recalled_from_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "KEPT_ENDED", 1)
    async with one_node(tmp_path) as node:
        told = {}
        for name in ("first", "second"):
            await node.run(run_spec(roles=(program("print('x')", size=1),), run_id=name), request_id=name)
            told[name] = await node.ends(name), node.registry.worker_logs(name, 0)
        with pytest.raises(RunNotFound):
            node.registry.status("first")

        await node.registry.recall("first")
        status, logs = told["first"]
        recalled = node.registry.status("first")
        assert replace(recalled, revision=0) == replace(status, revision=0)
        assert recalled.phase is Phase.SUCCEEDED
        assert node.registry.worker_logs("first", 0) == logs
        assert logs

        # And it is the same run for whoever asks to start it once more.
        again, created = await node.run(run_spec(run_id="first"), request_id="first")
        assert (again.incarnation, created) == (status.incarnation, False)

        await node.registry.recall("second")
        assert node.registry.status("second").incarnation == told["second"][0].incarnation
        await node.registry.recall("never")
        with pytest.raises(RunNotFound):
            node.registry.status("never")
