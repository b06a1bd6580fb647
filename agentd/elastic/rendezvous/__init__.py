"""How agents of one run find each other and agree on a round.

`registry.get_rendezvous_handler` makes a handler by name; `in_memory.InMemoryRendezvous` is for many agents
of one process, `static_tcp_rendezvous.StaticTCPRendezvous` for agents whose ranks are known.
"""

from agentd.core.assignment import Assignment
from agentd.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousHandlerCreator,
    RendezvousHandlerRegistry,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
    rendezvous_handler_registry,
)
from agentd.elastic.rendezvous.coordinated import (
    AssignedRendezvousInfo,
    AttachedRendezvous,
    CoordinatedRendezvous,
    RunEnded,
    Verdict,
    WorkerExit,
    WorkerStart,
)

__all__ = [
    "AssignedRendezvousInfo",
    "Assignment",
    "AttachedRendezvous",
    "CoordinatedRendezvous",
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousGracefulExitError",
    "RendezvousHandler",
    "RendezvousHandlerCreator",
    "RendezvousHandlerRegistry",
    "RendezvousInfo",
    "RendezvousParameters",
    "RendezvousStateError",
    "RendezvousStoreInfo",
    "RendezvousTimeoutError",
    "RunEnded",
    "Verdict",
    "WorkerExit",
    "WorkerStart",
    "rendezvous_handler_registry",
]
