"""The client library of agentd: one node or a whole fleet, synchronous or asyncio.

from agentd_client import Command, Fleet, RoleSpec, RunSpec

role = RoleSpec(command=Command(entrypoint="train.py"), local_world_size=2)
with Fleet(["node-a", "node-b"]) as fleet:
    report = fleet.run(RunSpec(run_id="demo", roles=(role,))).wait()
    print(report.status.phase)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentd.api.errors import (
        AddressUnusable,
        AgentdEnding,
        AgentError,
        DeadlineExceeded,
        DeviceInUse,
        HandoverRefused,
        HubUnreachable,
        InternalError,
        InvalidSpec,
        JournalUnavailable,
        LimitExceeded,
        LogNotFound,
        NoControllerLease,
        NodeDegraded,
        NodeDrained,
        NodeIdTaken,
        NoSuchDevice,
        NotRunning,
        NotSupported,
        ProgramUnusable,
        RunConflict,
        RunEnded,
        RunNotFound,
        StaleIncarnation,
        StaleSession,
        Unreachable,
    )
    from agentd.api.history import Event, EventKind, EventWorker
    from agentd.api.types import (
        TERMINAL,
        Command,
        ControllerLease,
        Drain,
        DrainMode,
        DrainReport,
        EntrypointKind,
        Failure,
        GroupRef,
        GroupStatus,
        LocalWorldSizeRule,
        LogChunk,
        LogGap,
        LogPosition,
        LogsRequest,
        LogStream,
        NodeInfo,
        NodeStatus,
        Phase,
        RendezvousSpec,
        RoleSpec,
        RunRef,
        RunRequest,
        RunSpec,
        RunStatus,
        StopScope,
        WorkerState,
        WorkerStatus,
    )
    from agentd_client.aio import AsyncAgentClient, AsyncFleet, AsyncRunHandle
    from agentd_client.client import AgentClient, Fleet, RunHandle
    from agentd_client.drains import DrainEvent, DrainProgress
    from agentd_client.environment import DEFAULT_PATTERNS, PassedEnvironment, choose_environment
    from agentd_client.failures import (
        FleetUnreachable,
        HubNotShared,
        RunNotFoundAnywhere,
        RunRefused,
        StillRunning,
    )
    from agentd_client.keeping import AsyncLeaseKeeper, LeaseKeeper
    from agentd_client.nodes import Node
    from agentd_client.report import (
        HistoryItem,
        LogCut,
        LogReceived,
        NodeBack,
        NodeProblem,
        NodeStarted,
        PerNode,
        RunEvent,
        RunOver,
        RunReport,
        Start,
        StatusChanged,
    )

__all__ = [
    "DEFAULT_PATTERNS",
    "TERMINAL",
    "AddressUnusable",
    "AgentClient",
    "AgentError",
    "AgentdEnding",
    "AsyncAgentClient",
    "AsyncFleet",
    "AsyncLeaseKeeper",
    "AsyncRunHandle",
    "Command",
    "ControllerLease",
    "DeadlineExceeded",
    "DeviceInUse",
    "Drain",
    "DrainEvent",
    "DrainMode",
    "DrainProgress",
    "DrainReport",
    "EntrypointKind",
    "Event",
    "EventKind",
    "EventWorker",
    "Failure",
    "Fleet",
    "FleetUnreachable",
    "GroupRef",
    "GroupStatus",
    "HandoverRefused",
    "HistoryItem",
    "HubNotShared",
    "HubUnreachable",
    "InternalError",
    "InvalidSpec",
    "JournalUnavailable",
    "LeaseKeeper",
    "LimitExceeded",
    "LocalWorldSizeRule",
    "LogChunk",
    "LogCut",
    "LogGap",
    "LogNotFound",
    "LogPosition",
    "LogReceived",
    "LogStream",
    "LogsRequest",
    "NoControllerLease",
    "NoSuchDevice",
    "Node",
    "NodeBack",
    "NodeDegraded",
    "NodeDrained",
    "NodeIdTaken",
    "NodeInfo",
    "NodeProblem",
    "NodeStarted",
    "NodeStatus",
    "NotRunning",
    "NotSupported",
    "PassedEnvironment",
    "PerNode",
    "Phase",
    "ProgramUnusable",
    "RendezvousSpec",
    "RoleSpec",
    "RunConflict",
    "RunEnded",
    "RunEvent",
    "RunHandle",
    "RunNotFound",
    "RunNotFoundAnywhere",
    "RunOver",
    "RunRef",
    "RunRefused",
    "RunReport",
    "RunRequest",
    "RunSpec",
    "RunStatus",
    "StaleIncarnation",
    "StaleSession",
    "Start",
    "StatusChanged",
    "StillRunning",
    "StopScope",
    "Unreachable",
    "WorkerState",
    "WorkerStatus",
    "choose_environment",
]

if not TYPE_CHECKING:
    # The lightest first: errors and types can be had without gRPC, which takes most of the time of an import.
    _HOMES = (
        "agentd.api.errors",
        "agentd.api.types",
        "agentd.api.history",
        "agentd_client.nodes",
        "agentd_client.environment",
        "agentd_client.failures",
        "agentd_client.report",
        "agentd_client.drains",
        "agentd_client.keeping",
        "agentd_client.client",
        "agentd_client.aio",
    )

    def __getattr__(name: str) -> object:
        """A public name, from where it is at home, when it is first asked for."""
        from importlib import import_module

        if name in __all__:
            for home in _HOMES:
                found = vars(import_module(home)).get(name)
                if found is not None:
                    globals()[name] = found
                    return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
