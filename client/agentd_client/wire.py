"""The calls of agentd's API as data: where each goes, what it answers, and whether repeating it is safe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from agentd.quickdata import dataclass
from agentd.v1 import agent_service_pb2 as service
from agentd.v1 import rendezvous_service_pb2 as rendezvous

AnswerT_co = TypeVar("AnswerT_co", bound=Message, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[AnswerT_co]):
    """One RPC."""

    path: str
    decode: Callable[[bytes], AnswerT_co]
    streams: bool = False
    repeatable: bool = True
    """A second delivery of the same request changes nothing more."""

    @property
    def name(self) -> str:
        """The RPC's own name, without its service."""
        return self.path.rpartition("/")[2]


_AGENT: Final = "/agentd.v1.AgentService"
_RENDEZVOUS: Final = "/agentd.v1.RendezvousService"

RUN = Method(path=f"{_AGENT}/Run", decode=service.RunResponse.FromString)
STATUS = Method(path=f"{_AGENT}/Status", decode=service.StatusResponse.FromString)
WATCH = Method(path=f"{_AGENT}/Watch", decode=service.WatchResponse.FromString, streams=True)
STOP = Method(path=f"{_AGENT}/Stop", decode=service.StopResponse.FromString)
LOGS = Method(path=f"{_AGENT}/Logs", decode=service.LogsResponse.FromString, streams=True)
SIGNAL = Method(path=f"{_AGENT}/Signal", decode=service.SignalResponse.FromString, repeatable=False)
GET_NODE = Method(path=f"{_AGENT}/GetNode", decode=service.GetNodeResponse.FromString)
LIST_EVENTS = Method(path=f"{_AGENT}/ListEvents", decode=service.ListEventsResponse.FromString)
LIST_ENDED_RUNS = Method(path=f"{_AGENT}/ListEndedRuns", decode=service.ListEndedRunsResponse.FromString)
HANDOVER = Method(path=f"{_AGENT}/Handover", decode=service.HandoverResponse.FromString)
DRAIN = Method(path=f"{_AGENT}/Drain", decode=service.DrainResponse.FromString)
UNDRAIN = Method(path=f"{_AGENT}/Undrain", decode=service.UndrainResponse.FromString)
RENEW_LEASE = Method(path=f"{_AGENT}/RenewLease", decode=service.RenewLeaseResponse.FromString)
DESCRIBE = Method(path=f"{_RENDEZVOUS}/Describe", decode=rendezvous.DescribeResponse.FromString)
TERMINATE = Method(path=f"{_RENDEZVOUS}/Terminate", decode=rendezvous.TerminateResponse.FromString)
CHECK_HEALTH = Method(path="/grpc.health.v1.Health/Check", decode=health_pb2.HealthCheckResponse.FromString)
WATCH_HEALTH = Method(
    path="/grpc.health.v1.Health/Watch", decode=health_pb2.HealthCheckResponse.FromString, streams=True
)

METHODS: Final[tuple[Method[Message], ...]] = (
    RUN,
    STATUS,
    WATCH,
    STOP,
    LOGS,
    SIGNAL,
    GET_NODE,
    LIST_EVENTS,
    LIST_ENDED_RUNS,
    HANDOVER,
    DRAIN,
    UNDRAIN,
    RENEW_LEASE,
    DESCRIBE,
    TERMINATE,
    CHECK_HEALTH,
    WATCH_HEALTH,
)
"""All of them. `RendezvousService.Join` is between agentds and no client's business."""
