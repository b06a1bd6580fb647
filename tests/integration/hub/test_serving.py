"""A hub that began again before anybody can reach it lets nobody pay for that."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from agentd.api.types import Phase
from agentd.hub.hub import Hub
from agentd.hub.state import HubRecord
from tests.integration.hub import virtual_time
from tests.integration.hub.nodes import INCARNATION, RUN, MemoryJournal, make_spec


def test_the_whole_controller_lease_counts_from_when_the_hub_serves() -> None:
    async def scenario() -> None:
        spec = replace(make_spec("a", "b"), controller_lease=1.0)
        hub = Hub("hub", MemoryJournal(), serving=False)
        hub.create(spec, INCARNATION, HubRecord(round=1))
        # A disk that takes long to tell what was there.
        await asyncio.sleep(30.0)
        hub.serve()
        await asyncio.sleep(0.8)
        assert hub.describe(RUN).status.phase is Phase.RENDEZVOUS
        hub.renew_lease(RUN)
        await asyncio.sleep(0.8)
        assert hub.describe(RUN).status.phase is Phase.RENDEZVOUS
        await asyncio.sleep(0.5)
        assert hub.describe(RUN).status.phase is Phase.STOPPED
        await hub.close()

    virtual_time.run(scenario())
