"""Who decides what becomes of a round: a rendezvous that coordinates, else the agent alone, as in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from agentd.elastic.agent.server.spec import RunResult, WorkerSpec
from agentd.elastic.multiprocessing.errors.failure import ProcessFailure
from agentd.elastic.rendezvous.api import RendezvousHandler, RendezvousInfo
from agentd.elastic.rendezvous.coordinated import CoordinatedRendezvous, Verdict
from agentd.elastic.rendezvous.torch_handlers import as_ours


class Decisions(Protocol):
    """What the agent asks and tells at the turns of a round."""

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for the next round."""

    def failed(self, round_: int, result: RunResult, remaining_restarts: int) -> Verdict:
        """The round failed here."""

    def not_started(self, round_: int, error: OSError) -> Verdict:
        """The round's workers could not be started here."""

    def done(self, round_: int) -> Verdict:
        """All workers succeeded here."""

    def round_over(self) -> bool:
        """Whether the running round must go, for a reason that costs no restart."""

    def failed_late(self, round_: int, failures: Mapping[int, ProcessFailure]) -> None:
        """Workers had failed by themselves when the round was stopped."""

    def gone(self, round_: int) -> None:
        """No process of the round is left here."""


class AloneDecisions:
    """Each agent counts its own restarts, looks for newcomers, and meets the others once more at the end."""

    def __init__(
        self,
        spec: WorkerSpec,
        exit_barrier: Callable[[], object],
        foreign_code: Callable[[], AbstractContextManager[None]],
        clock: Callable[[], float],
    ) -> None:
        self._spec = spec
        self._exit_barrier = exit_barrier
        self._foreign_code = foreign_code
        self._clock = clock
        self._next_look = 0.0

    def next_rendezvous(self) -> RendezvousInfo:
        with self._foreign_code(), as_ours():
            return self._spec.rdzv_handler.next_rendezvous()

    def failed(self, round_: int, result: RunResult, remaining_restarts: int) -> Verdict:
        return Verdict.RESTART if remaining_restarts > 0 else Verdict.END

    def not_started(self, round_: int, error: OSError) -> Verdict:
        return Verdict.END

    def done(self, round_: int) -> Verdict:
        self._exit_barrier()
        return Verdict.END

    def round_over(self) -> bool:
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + self._spec.monitor_interval
        with self._foreign_code(), as_ours():
            return self._spec.rdzv_handler.num_nodes_waiting() > 0

    def failed_late(self, round_: int, failures: Mapping[int, ProcessFailure]) -> None:
        pass

    def gone(self, round_: int) -> None:
        pass


class SharedDecisions:
    """The rendezvous decides for all agents of the run."""

    def __init__(self, handler: RendezvousHandler, coordinator: CoordinatedRendezvous) -> None:
        """Both arguments are the same object: the two sides of one rendezvous."""
        self._handler = handler
        self._coordinator = coordinator
        self._failed_round: int | None = None
        """The round whose failure here was told."""

    def next_rendezvous(self) -> RendezvousInfo:
        return self._handler.next_rendezvous()

    def failed(self, round_: int, result: RunResult, remaining_restarts: int) -> Verdict:
        self._failed_round = round_
        return self._coordinator.on_failure(round_, result.failures, result.reason)

    def not_started(self, round_: int, error: OSError) -> Verdict:
        self._failed_round = round_
        return self._coordinator.on_failure(round_, {}, str(error))

    def done(self, round_: int) -> Verdict:
        return self._coordinator.on_done(round_)

    def round_over(self) -> bool:
        return self._coordinator.round_over()

    def failed_late(self, round_: int, failures: Mapping[int, ProcessFailure]) -> None:
        if failures and round_ != self._failed_round:
            self._failed_round = round_
            self._coordinator.on_late_failure(round_, failures)

    def gone(self, round_: int) -> None:
        self._coordinator.on_round_gone(round_)
