"""GetNode: who this node is and how it is."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

import google.protobuf
import grpc

from agentd import __version__
from agentd.api.patience import within
from agentd.api.targets import Target
from agentd.api.types import Drain, GroupRef, NodeInfo, RunRef
from agentd.core.conditions import Condition
from agentd.daemon.threads import in_own_thread
from agentd.procs.node import NodeFacts, look

PATIENCE: Final = 2.0
"""Seconds a look at the machine may take before the last one is shown."""
STATE_DISK_SLOW: Final = Condition.STATE_DISK_SLOW.value

_log = logging.getLogger(__name__)


class Groups(Protocol):
    """The part of the registry that GetNode shows."""

    @property
    def ending(self) -> bool: ...

    @property
    def drain(self) -> Drain | None: ...

    @property
    def problems(self) -> Mapping[str, str]: ...

    def group_refs(self) -> tuple[GroupRef, ...]: ...

    def hub_of(self) -> tuple[RunRef, ...]: ...


class NodeReporter:
    """Looks at the machine in a thread, one look at a time for all who ask."""

    def __init__(
        self,
        groups: Groups,
        *,
        node_id: str,
        agent_uid: str,
        state_dir: str,
        listening: Sequence[Target],
        advertised_address: str,
    ) -> None:
        self._groups = groups
        self._fixed = NodeInfo(
            node_id=node_id,
            agent_uid=agent_uid,
            version=__version__,
            python_version=platform.python_version(),
            grpc_version=str(grpc.__version__),
            protobuf_version=google.protobuf.__version__,
            listen_addresses=tuple(map(str, listening)),
            advertised_address=advertised_address,
            pid=os.getpid(),
            started_at=time.time(),
            state_dir=state_dir,
        )
        self._look: asyncio.Future[NodeFacts] | None = None
        self._last: NodeFacts | None = None

    async def info(self) -> NodeInfo:
        """This node now. A disk that does not answer makes it old, never late."""
        problems = dict(self._groups.problems)
        try:
            self._last = await within(PATIENCE, asyncio.shield(self._looking()))
        except asyncio.TimeoutError:
            problems.setdefault(STATE_DISK_SLOW, f"it did not answer in {PATIENCE:g} s")
        except OSError as error:
            # What is wrong is told by the conditions, which look for themselves.
            _log.info("the machine cannot be looked at", extra={"problem": str(error)})
        return _node_info(self._fixed, self._last, self._groups, problems)

    def _looking(self) -> asyncio.Future[NodeFacts]:
        if self._look is None or self._look.done():
            self._look = in_own_thread(lambda: look(self._fixed.state_dir), "agentd-node")
        return self._look


def _node_info(
    fixed: NodeInfo, facts: NodeFacts | None, groups: Groups, problems: Mapping[str, str]
) -> NodeInfo:
    info = replace(
        fixed,
        ending=groups.ending,
        drain=groups.drain,
        hub_of=groups.hub_of(),
        groups=groups.group_refs(),
        conditions=tuple(problems),
        condition_details=problems,
    )
    if facts is None:
        return info
    return replace(
        info,
        hostname=facts.hostname,
        cpus=facts.cpus,
        gpus=facts.gpus,
        memory_total_bytes=facts.memory_total_bytes,
        memory_available_bytes=facts.memory_available_bytes,
        load_1m=facts.load[0],
        load_5m=facts.load[1],
        load_15m=facts.load[2],
        state_dir_total_bytes=facts.disk_total_bytes,
        state_dir_free_bytes=facts.disk_free_bytes,
        agentd_resident_bytes=facts.resident_bytes,
    )
