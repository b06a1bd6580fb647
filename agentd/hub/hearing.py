"""What an agent has heard of its run, and what that means in the words of the elastic library. No waiting."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeAlias

from agentd.api.errors import AgentError, Code, DeadlineExceeded
from agentd.api.states import Phase, WorkerState
from agentd.elastic.multiprocessing.errors.failure import ProcessFailure
from agentd.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousError,
    RendezvousStateError,
    RendezvousTimeoutError,
)
from agentd.elastic.rendezvous.coordinated import RunEnded
from agentd.hub.failures import answered
from agentd.hub.messages import Assignment, MemberWaiting, RunFinished, StopRound

Word: TypeAlias = Assignment | StopRound | MemberWaiting | RunFinished | AgentError
"""What comes over an agent's line: the hub's messages, or why there are none."""

_STATES = {
    Phase.SUCCEEDED: WorkerState.SUCCEEDED,
    Phase.STOPPED: WorkerState.STOPPED,
    Phase.FAILED: WorkerState.FAILED,
}

log = logging.getLogger(__name__)


class Hearing:
    """The newest place of one member, the rounds that must go, the end."""

    def __init__(self, run_id: str, node_id: str) -> None:
        self._run_id = run_id
        self._node_id = node_id
        self._stop_round = 0
        self.place: Assignment | None = None
        self.finished: RunFinished | None = None
        """The end of the run for everyone."""
        self.error: RendezvousError | None = None
        """Why this agent has no part in the run any more."""

    @property
    def round(self) -> int:
        """The newest round with a place for this member; 0: none yet."""
        return self.place.round if self.place else 0

    @property
    def must_go(self) -> bool:
        """Whether that round is to stop."""
        return self._stop_round >= self.round > 0

    @property
    def over(self) -> bool:
        """Whether there is nothing more to come."""
        return self.finished is not None or self.error is not None

    @property
    def succeeded(self) -> bool:
        """Whether the run is over, and well."""
        return self.finished is not None and self.finished.phase is Phase.SUCCEEDED

    def hear(self, word: Word) -> None:
        """Take a word; what is older than what is known changes nothing."""
        if isinstance(word, Assignment):
            if word.round > self.round:
                self.place = word
        elif isinstance(word, StopRound):
            self._stop_round = max(self._stop_round, word.round)
            log.info("round %d of run %s is to stop: %s", word.round, self._run_id, word.reason)
        elif isinstance(word, MemberWaiting):
            log.info("run %s has no place now: %s", self._run_id, word.reason)
        elif isinstance(word, RunFinished):
            # It comes again when its first failure was refined, or its grace was shortened.
            self.finished = word
        else:
            self.error = _as_rendezvous_error(word)

    def end(self, own: Mapping[int, ProcessFailure], *, forming: bool) -> Exception:
        """What an agent is told that goes on after all is over. `own`: failures of its newest round.

        `forming`: it waits for a round.
        """
        finished = self.finished
        if finished is None:
            assert self.error is not None, "nothing is over"
            return self.error
        first, state = finished.first_failure, _STATES.get(finished.phase)
        if state is WorkerState.FAILED:
            if first is not None:
                return RunEnded(state, finished.reason, answered(first, self._node_id, own))
            return (
                RendezvousTimeoutError(finished.reason) if forming else RunEnded(state, finished.reason, own)
            )
        # No other phase is an end for everyone: this agent alone is turned away.
        return RendezvousClosedError(finished.reason) if state is None else RunEnded(state, finished.reason)


def _as_rendezvous_error(error: AgentError) -> RendezvousError:
    """The error of torch's family whose meaning is nearest, with the sentence of agentd."""
    if error.code is Code.UNAVAILABLE or isinstance(error, DeadlineExceeded):
        return RendezvousConnectionError(str(error))
    if error.code in (Code.ALREADY_EXISTS, Code.INVALID_ARGUMENT):
        return RendezvousStateError(str(error))
    if error.code in (Code.NOT_FOUND, Code.FAILED_PRECONDITION):
        return RendezvousClosedError(str(error))
    return RendezvousError(str(error))
