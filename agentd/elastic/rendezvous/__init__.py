"""How agents of one run find each other and agree on a round."""

from agentd.core.assignment import Assignment
from agentd.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from agentd.elastic.rendezvous.coordinated import (
    AssignedRendezvousInfo,
    CoordinatedRendezvous,
    Verdict,
    WorkerExit,
    WorkerStart,
)

__all__ = [
    "AssignedRendezvousInfo",
    "Assignment",
    "CoordinatedRendezvous",
    "RendezvousClosedError",
    "RendezvousConnectionError",
    "RendezvousError",
    "RendezvousGracefulExitError",
    "RendezvousHandler",
    "RendezvousInfo",
    "RendezvousStateError",
    "RendezvousStoreInfo",
    "RendezvousTimeoutError",
    "Verdict",
    "WorkerExit",
    "WorkerStart",
]
