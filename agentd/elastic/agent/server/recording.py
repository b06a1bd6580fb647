"""What an agent records of its group: torch's events and metrics, built only where somebody listens.

Names, sources and metadata are torch's. No handler, rendezvous or odd result makes anything here raise.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from agentd.api.states import WorkerState
from agentd.elastic import metrics
from agentd.elastic.agent.server.spec import RunResult, Worker, WorkerGroup, WorkerSpec
from agentd.elastic.multiprocessing.errors.failure import NOT_AVAILABLE, ProcessFailure
from agentd.elastic.tolerance import tolerate

if TYPE_CHECKING:
    from agentd.elastic.events import Event, EventMetadataValue

__all__ = ["GroupRecorder", "end_metrics", "end_state", "flakiness"]

EVENT_PREFIX = "torchelastic.worker.status."

_AGENT, _WORKER = "AGENT", "WORKER"
_FAILED_STATES = (WorkerState.FAILED, WorkerState.UNHEALTHY)


class GroupRecorder:
    """Records the life of one agent's group. With the handler "null" events are not even imported."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Raises `UnknownEventHandler` if the spec's event_log_handler is none, before any worker runs."""
        self._spec = spec
        self._group = WorkerGroup(spec)
        self._restarts = 0
        self._listened_to()

    # Events.

    def rendezvous(self, group: WorkerGroup, duration_ms: float) -> None:
        """A rendezvous ended, well or not, after so long."""
        self._record_agent(group, "RENDEZVOUS", duration_ms=duration_ms)

    def ranks_assigned(self, group: WorkerGroup, duration_ms: float) -> None:
        """Ranks were assigned, or could not be, after so long."""
        self._record_agent(group, "ASSIGN_WORKER_RANKS", duration_ms=duration_ms)

    def started(self, group: WorkerGroup, restarts: int) -> None:
        """All workers of a round run: one event each. `restarts` came before this round."""
        self._group, self._restarts = group, restarts
        if not self._listened_to():
            return
        for worker in group.workers:
            self._record(self._event("START", _WORKER, worker=worker))

    def ended(self, group: WorkerGroup, result: RunResult, restarts: int, total_run_time_s: float) -> None:
        """The run ended here: one event for each worker that has been started."""
        self._group, self._restarts = group, restarts
        if not self._listened_to():
            return
        for worker in group.workers:
            if worker.id is not None or worker.global_rank in result.failures:
                self._record(self._end_event(worker, result, total_run_time_s))

    def watchdog(self, name: str, request: Any = None) -> None:
        """The watchdog did something, to the worker of `request` if there is one (a `FileTimerRequest`)."""
        if not self._listened_to():
            return
        inner = {"watchdog_event": name}
        if request is not None:
            for field in ("worker_pid", "scope_id", "expiration_time", "signal"):
                inner[field] = str(getattr(request, field, ""))
        self._record(self._event("RUNNING", _AGENT, name=name, inner=inner))

    def agent_ended(
        self, result: RunResult | None, total_run_time_s: float, raw_error: str | None = None
    ) -> None:
        """`run` comes back with this result, or with None it raised `raw_error`, a traceback.

        The agent's event is SUCCEEDED, STOPPED or FAILED. (torch's launcher says SUCCEEDED if `run` returns.)
        """
        if not self._listened_to():
            return
        state = "FAILED" if result is None or result.state in _FAILED_STATES else result.state.value
        error = raw_error or (result.reason if result is not None else "") or None
        self._record(self.agent_event(state, total_run_time_s, error))

    def agent_event(self, state: str, total_run_time_s: float, raw_error: str | None = None) -> Event:
        """The event that `run` ended in this state, made and not recorded."""
        return self._event(state, _AGENT, raw_error=raw_error, total_run_time_s=total_run_time_s)

    # Metrics.

    def step_metrics(self, state: WorkerState, remaining: int) -> None:
        """How the group stands, at each look at it."""
        if not metrics.is_listening():
            return
        prefix = f"workers.{self._spec.role}"
        metrics.put_metric(f"{prefix}.remaining_restarts", remaining)
        metrics.put_metric(f"{prefix}.{WorkerState(state).value.lower()}", 1)

    def end_metrics(self, result: RunResult, remaining: int, max_restarts: int | None = None) -> None:
        """How the run ended. `max_restarts` is the spec's unless the rendezvous gave another."""
        if not metrics.is_listening():
            return
        most = self._spec.max_restarts if max_restarts is None else max_restarts
        for name, value in end_metrics(result.state, remaining, most).items():
            metrics.put_metric(f"workers.{self._spec.role}.{name}", value)

    # How they are built.

    def _listened_to(self) -> bool:
        if self._spec.event_log_handler == "null":
            return False
        from agentd.elastic import events

        return events.is_listening(self._spec.event_log_handler)

    def _record_agent(self, group: WorkerGroup, state: str, duration_ms: float) -> None:
        self._group = group
        if self._listened_to():
            self._record(self._event(state, _AGENT, duration_ms=duration_ms))

    def _record(self, event: Event) -> None:
        from agentd.elastic import events

        events.record(event, self._spec.event_log_handler)

    def _end_event(self, worker: Worker, result: RunResult, total_run_time_s: float) -> Event:
        failure = result.failures.get(worker.global_rank)
        state = end_state(result, worker.global_rank)
        inner: dict[str, Any] = {"exit_code": 0 if state == "SUCCEEDED" else None}
        if failure is not None:
            inner = {"exit_code": failure.exitcode, "worker_pid": failure.pid}
        if result.reason:
            inner["reason"] = result.reason
        return self._event(
            state,
            _WORKER,
            worker=worker,
            inner=inner,
            raw_error=_raw_error(failure),
            total_run_time_s=total_run_time_s,
        )

    def _event(
        self,
        state: str,
        source: str,
        *,
        name: str = "",
        worker: Worker | None = None,
        inner: dict[str, Any] | None = None,
        raw_error: str | None = None,
        duration_ms: float | None = None,
        total_run_time_s: float = 0,
    ) -> Event:
        from agentd.elastic.events import Event, EventSource

        group = self._group
        run_id, backend = self._rendezvous_names()
        about = {
            "group_world_size": group.group_world_size,
            "entry_point": self._spec.get_entrypoint_name(),
            "round": group.round,
            **_about(worker),
            **(inner or {}),
        }
        metadata: dict[str, EventMetadataValue] = {
            "run_id": run_id,
            "global_rank": worker.global_rank if worker else None,
            "group_rank": group.group_rank,
            "worker_id": str(worker.id) if worker else None,
            "role": self._spec.role,
            # Not the qualified name: asking DNS may block the agent for seconds.
            "hostname": os.uname().nodename,
            "state": state,
            "total_run_time": int(total_run_time_s),
            "rdzv_backend": backend,
            "raw_error": raw_error,
            "metadata": json.dumps(about, default=str),
            "agent_restarts": self._restarts,
            "duration_ms": duration_ms,
        }
        return Event(name or EVENT_PREFIX + state, EventSource(source), metadata=metadata)

    def _rendezvous_names(self) -> tuple[str, str]:
        """The run and the backend, as the rendezvous calls them; it may be anybody's, or none."""
        handler = self._spec.rdzv_handler
        try:
            return handler.get_run_id(), handler.get_backend()
        except Exception as error:  # noqa: BLE001 - an event without these is better than none, or no run
            tolerate(handler, error)
            return "", ""


def end_state(result: RunResult, rank: int) -> str:
    """How a worker ended, in the words of its last event.

    | the run ended | it failed by itself | it gave a value | neither |
    |---|---|---|---|
    | SUCCEEDED | FAILED | SUCCEEDED | SUCCEEDED |
    | FAILED, UNHEALTHY, STOPPED or anything else | FAILED | SUCCEEDED | TERMINATED |
    """
    if rank in result.failures:
        return "FAILED"
    if rank in result.return_values or result.state is WorkerState.SUCCEEDED:
        return "SUCCEEDED"
    return "TERMINATED"


def end_metrics(state: WorkerState, remaining: int, max_restarts: int) -> dict[str, int]:
    """What is put at the end of a run, by the name after `workers.<role>.`; a stop is no success."""
    retried = remaining != max_restarts
    failed, succeeded = state in _FAILED_STATES, state is WorkerState.SUCCEEDED
    return {
        "flakiness": flakiness(failed, remaining, max_restarts),
        "run_total": 1,
        "run_success_with_retries": int(succeeded and retried),
        "run_success_no_retries": int(succeeded and not retried),
        "run_failed_with_retries": int(failed and retried),
        "run_failed_no_retries": int(failed and not retried),
    }


def flakiness(failed: bool, remaining: int, max_restarts: int) -> int:
    """From 0, no restart was needed, to 100, the run failed."""
    if failed:
        return 100
    return max(0, int(100 - 100 * (remaining + 1) / (max_restarts + 1)))


def _about(worker: Worker | None) -> dict[str, Any]:
    if worker is None:
        return {}
    return {
        "local_rank": worker.local_rank,
        "role_rank": worker.role_rank,
        "role_world_size": worker.role_world_size,
        "exit_code": None,
        "worker_pid": worker.id if isinstance(worker.id, int) else None,
    }


def _raw_error(failure: ProcessFailure | None) -> str | None:
    """The worker's own report; of one that left none, what its exit status says."""
    if failure is None:
        return None
    left_none = failure.error_file == NOT_AVAILABLE
    try:
        return json.dumps({"message": failure.message} if left_none else failure.error_file_data, default=str)
    except RecursionError:
        return json.dumps({"message": failure.message_text()})
