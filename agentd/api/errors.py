"""Errors of agentd's API: types that carry facts and build their own sentence.

The sentence names what happened and the next step. Nothing here knows gRPC; `agentd.api.errwire`
turns an error into a status and back without loss.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import ClassVar


class Code(enum.Enum):
    """The canonical gRPC codes errors of agentd use, by number."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class AgentError(Exception):
    """Base of all. `facts` is what the sentence was built from, as text, keyed as in errors.proto."""

    reason: ClassVar[str] = "INTERNAL"
    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, sentence: str, facts: Mapping[str, object] | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.facts: dict[str, str] = {key: str(value) for key, value in (facts or {}).items()}

    def __str__(self) -> str:
        return self.sentence

    @classmethod
    def from_wire(cls, sentence: str, facts: Mapping[str, str]) -> AgentError:
        """The error another process raised, with its own sentence."""
        error = cls.__new__(cls)
        AgentError.__init__(error, sentence, facts)
        return error


class InvalidSpec(AgentError):
    """A field of a request is wrong."""

    reason = "INVALID_SPEC"
    code = Code.INVALID_ARGUMENT

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}", {"field": field, "problem": problem})


class ProgramUnusable(AgentError):
    """The node lacks the program, interpreter or directory of a role."""

    reason = "PROGRAM_UNUSABLE"
    code = Code.FAILED_PRECONDITION

    def __init__(self, node: str, path: str, problem: str) -> None:
        super().__init__(
            f"node {node}: {path}: {problem}. Put it right there, or choose another program, --python "
            "or --workdir.",
            {"node": node, "path": path, "problem": problem},
        )


class RunNotFound(AgentError):
    """No run of that id, or not that incarnation, is known here."""

    reason = "RUN_NOT_FOUND"
    code = Code.NOT_FOUND

    def __init__(self, run_id: str, node: str) -> None:
        super().__init__(
            f"node {node} knows no run {run_id!r}. `agentctl ps` lists the runs of a node.",
            {"run_id": run_id, "node": node},
        )


class RunConflict(AgentError):
    """A live run has this id and another spec."""

    reason = "RUN_CONFLICT"
    code = Code.ALREADY_EXISTS

    def __init__(self, run_id: str, fields: Iterable[str]) -> None:
        names = ", ".join(fields)
        super().__init__(
            f"run {run_id!r} is live with another spec; these fields differ: {names}. "
            f"Stop it first (`agentctl stop {run_id}`), or choose another run id.",
            {"run_id": run_id, "fields": names},
        )


class StaleIncarnation(AgentError):
    """The request is about an older use of the run id than one known here."""

    reason = "STALE_INCARNATION"
    code = Code.FAILED_PRECONDITION

    def __init__(self, run_id: str, incarnation: int, known: int) -> None:
        super().__init__(
            f"run {run_id!r}: incarnation {incarnation} is older than {known}, which is known here. "
            "Ask the hub's node again and use the incarnation of its answer.",
            {"run_id": run_id, "incarnation": incarnation, "known": known},
        )


class AgentdEnding(AgentError):
    """agentd of the node is about to end and takes no new run."""

    reason = "AGENTD_ENDING"
    code = Code.UNAVAILABLE

    def __init__(self, node: str) -> None:
        super().__init__(
            f"node {node} takes no new run: its agentd is ending. Use another node, or start agentd there "
            "again.",
            {"node": node},
        )


class DeviceInUse(AgentError):
    """A device of the spec belongs to another live run."""

    reason = "DEVICE_IN_USE"
    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, device: int, run_id: str) -> None:
        super().__init__(
            f"device {device} is in use by run {run_id!r}. Choose other devices, or stop that run.",
            {"device": device, "run_id": run_id},
        )


class NoSuchDevice(AgentError):
    """The rule for local_world_size finds no device on the node."""

    reason = "NO_SUCH_DEVICE"
    code = Code.FAILED_PRECONDITION

    def __init__(self, rule: str, node: str) -> None:
        super().__init__(
            f"node {node} has no device for local_world_size {rule!r}. Give a number, or use 'cpu'.",
            {"rule": rule, "node": node},
        )


class RunEnded(AgentError):
    """The run has ended; what was asked needs a live one."""

    reason = "RUN_ENDED"
    code = Code.FAILED_PRECONDITION

    def __init__(self, run_id: str, phase: str) -> None:
        super().__init__(
            f"run {run_id!r} has ended ({phase}). Start it again with `agentctl run`.",
            {"run_id": run_id, "phase": phase},
        )


NO_PORT = ":0"


class NodeIdTaken(AgentError):
    """Two agentds, or two agents of the elastic library, claim one node id."""

    reason = "NODE_ID_TAKEN"
    code = Code.ALREADY_EXISTS

    def __init__(
        self, node_id: str, address: str, other_address: str, held_s: float = 0.0, gone: bool = False
    ) -> None:
        """`held_s`: by then the hub knows whether the other one lives. `gone`: it has not been heard."""
        # An agent of the library serves no port: its address has none, and it takes no flags.
        library = address.endswith(NO_PORT)
        other = "agent" if other_address.endswith(NO_PORT) else "agentd"
        step = (
            "Give one of them another rendezvous option node_id"
            if library
            else "Start one of them with another --node-id"
        )
        there = other_address.removesuffix(NO_PORT)
        found = (
            f"is held for the {other} that was at {there}: it is free in {held_s:.0f} s if that stays away"
            if gone
            else f"is taken by a live {other} at {there}. {step}"
        )
        super().__init__(
            f"node id {node_id!r} of {address.removesuffix(NO_PORT)} {found}.",
            {"node_id": node_id, "address": address, "other_address": other_address, "held_s": f"{held_s:g}"},
        )


class StaleSession(AgentError):
    """A newer session of the same node has replaced this one."""

    reason = "STALE_SESSION"
    code = Code.FAILED_PRECONDITION

    def __init__(self, node_id: str) -> None:
        super().__init__(
            f"a newer session of node {node_id!r} is there; this one is over", {"node_id": node_id}
        )


class HubUnreachable(AgentError):
    """The run's hub does not answer."""

    reason = "HUB_UNREACHABLE"
    code = Code.UNAVAILABLE

    def __init__(self, hub: str, since: str, problem: str = "") -> None:
        detail = f" ({problem})" if problem else ""
        super().__init__(
            f"hub {hub} unreachable since {since}{detail}. Start agentd there again, or start the same spec "
            "with --rdzv-endpoint at another node.",
            {"hub": hub, "since": since},
        )


class JournalUnavailable(AgentError):
    """The journal cannot be written, so nothing new is promised; or it cannot be read now."""

    reason = "JOURNAL_UNAVAILABLE"
    code = Code.UNAVAILABLE

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"the journal cannot be used: {problem}. Look at its disk, then try again.",
            {"problem": problem},
        )


class NodeDegraded(AgentError):
    """Something that new runs need has run out on the node; what runs there goes on."""

    reason = "NODE_DEGRADED"
    code = Code.UNAVAILABLE

    def __init__(self, node: str, condition: str, problem: str, step: str) -> None:
        super().__init__(
            f"node {node} takes no new run: {condition}: {problem}. {step}, or use another node; it takes "
            "runs again by itself.",
            {"node": node, "condition": condition, "problem": problem, "step": step},
        )


class LogNotFound(AgentError):
    """No log of these ranks, of this role, or of this round is on the node."""

    reason = "LOG_NOT_FOUND"
    code = Code.NOT_FOUND

    def __init__(self, run_id: str, ranks: str, role: str = "", round: int = 0) -> None:
        wanted = "".join(
            f" {words} {value}"
            for words, value in (("of rank", ranks), ("of role", role), ("of round", round))
            if value
        )
        super().__init__(
            f"run {run_id!r} has no log{wanted} here. "
            f"`agentctl status {run_id}` shows its ranks, roles and newest round.",
            {"run_id": run_id, "ranks": ranks},
        )


class NotSupported(AgentError):
    """The other side is too old to know the call."""

    reason = "NOT_SUPPORTED"
    code = Code.UNIMPLEMENTED

    def __init__(self, method: str, version: str) -> None:
        super().__init__(
            f"{method} is not known to agentd {version}. Upgrade agentd on that node.",
            {"method": method, "version": version},
        )


class InternalError(AgentError):
    """A fault of agentd itself; its log has the story under the id."""

    reason = "INTERNAL"
    code = Code.INTERNAL

    def __init__(self, error_id: str, node: str) -> None:
        super().__init__(
            f"internal error {error_id} on node {node}. The log of agentd there tells it under this id.",
            {"error_id": error_id, "node": node},
        )


class Unreachable(AgentError):
    """No agentd answers at a target. Made by the client."""

    reason = "UNREACHABLE"
    code = Code.UNAVAILABLE

    def __init__(self, target: str, problem: str = "", next_step: str = "") -> None:
        detail = f": {problem}" if problem else ""
        next_step = next_step or "Start one there with `agentd`, or check the address."
        super().__init__(
            f"no agentd answers at {target}{detail}. {next_step}",
            {"target": target, "problem": problem},
        )


class DeadlineExceeded(AgentError):
    """A call was not answered in time. Made by the client."""

    reason = "DEADLINE"
    code = Code.DEADLINE_EXCEEDED

    def __init__(self, target: str, timeout: float) -> None:
        super().__init__(
            f"{target} did not answer within {timeout:g} s. It may still do what was asked; "
            "a repeated call is safe.",
            {"target": target, "timeout": f"{timeout:g}"},
        )


class LimitExceeded(AgentError):
    """Too much of something."""

    reason = "LIMIT_EXCEEDED"
    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, what: str, limit: str) -> None:
        super().__init__(f"{what} is over the limit of {limit}", {"what": what, "limit": limit})


class AddressUnusable(AgentError):
    """An address cannot serve the other nodes of a run."""

    reason = "ADDRESS_UNUSABLE"
    code = Code.FAILED_PRECONDITION

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(f"{address}: {problem}", {"address": address, "problem": problem})


class NotRunning(AgentError):
    """The run has no workers now, or none of these ranks."""

    reason = "NOT_RUNNING"
    code = Code.FAILED_PRECONDITION

    def __init__(self, run_id: str, phase: str, ranks: str = "") -> None:
        who = f"running worker of rank {ranks}" if ranks else "running workers here"
        super().__init__(
            f"run {run_id!r} has no {who}; it is {phase}. `agentctl status {run_id}` shows who runs.",
            {"run_id": run_id, "phase": phase, **({"ranks": ranks} if ranks else {})},
        )


class HandoverRefused(AgentError):
    """The workers of this agentd end with it: there is nothing to hand over."""

    reason = "HANDOVER_REFUSED"
    code = Code.FAILED_PRECONDITION

    def __init__(self, node: str, mode: str) -> None:
        super().__init__(
            f"agentd of node {node} has host_mode {mode}: its workers end with it. Stop it with SIGTERM, or "
            "start it with host_mode keep.",
            {"node": node, "mode": mode},
        )


class NodeDrained(AgentError):
    """An operator has drained the node: it takes no new run until somebody undrains it."""

    reason = "NODE_DRAINED"
    code = Code.FAILED_PRECONDITION

    def __init__(self, node: str, why: str = "") -> None:
        super().__init__(
            f"node {node} is drained{f' ({why})' if why else ''} and takes no new run. Use another node, or "
            "give it back with `agentctl undrain`.",
            {"node": node, "why": why},
        )


class NoControllerLease(AgentError):
    """The run was started without a controller lease: there is nothing to renew."""

    reason = "NO_CONTROLLER_LEASE"
    code = Code.FAILED_PRECONDITION

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"run {run_id!r} has no controller lease: nobody needs to renew it. Start a run with "
            "--controller-lease to have one.",
            {"run_id": run_id},
        )


ERRORS: Mapping[str, type[AgentError]] = {
    cls.reason: cls
    for cls in (
        InvalidSpec,
        ProgramUnusable,
        RunNotFound,
        RunConflict,
        StaleIncarnation,
        AgentdEnding,
        DeviceInUse,
        NoSuchDevice,
        RunEnded,
        NodeIdTaken,
        StaleSession,
        HubUnreachable,
        JournalUnavailable,
        NodeDegraded,
        LogNotFound,
        NotSupported,
        InternalError,
        Unreachable,
        DeadlineExceeded,
        LimitExceeded,
        AddressUnusable,
        NotRunning,
        HandoverRefused,
        NodeDrained,
        NoControllerLease,
    )
}
"""Every error by the reason it has on the wire."""
