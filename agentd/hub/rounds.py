"""The beats of a run: form, run, stop, end. Who may go on is decided here, and who pays for it.

A round is left in two beats. *Stop* is answered by each of its members with "the round is gone here"; only
then is the next one *formed*. So no worker of round N+1 starts while a member of it still runs N.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agentd.api.types import Failure, Phase
from agentd.hub import sentences
from agentd.hub.messages import AgedFailure, MemberFailed, MemberWaiting, RunFinished, StopRound
from agentd.hub.ranks import as_listed, assign, awaited, ready, seat
from agentd.hub.state import Beat, Ended, MemberKey, Place, RunState, TimedFailure
from agentd.hub.turn import Turn, node_ids, without


def advance(turn: Turn) -> None:
    """Do what the state is ripe for, by who has answered or by the time."""
    if turn.state.beat is Beat.STOPPING:
        _stop_if_answered(turn)
    if turn.state.beat is Beat.FORMING:
        _form_if_ripe(turn)
    state = turn.state
    if state.beat is Beat.ENDING and (not state.owing or _reached(state.answer_deadline, turn.now)):
        _end(turn)


def due(state: RunState) -> float | None:
    """When `advance` has something to do though nothing happens."""
    times: list[float | None] = list(state.detached.values())
    if state.beat is Beat.FORMING:
        enough = len(ready(state)) >= state.plan.min_members
        times.append(state.last_call_at if enough else state.join_deadline)
    elif state.beat is Beat.STOPPING:
        times.append(state.answer_deadline if state.owing else state.gather_until)
    elif state.beat is Beat.ENDING:
        times.append(state.answer_deadline)
    return min((at for at in times if at is not None), default=None)


def membership_changed(turn: Turn, reason: str) -> None:
    """The running round lost a member, or gets one more: it is stopped, and another one formed."""
    if _pay_change(turn, reason):
        _stop_round(turn, reason)


def hear_of(turn: Turn, round_: int) -> None:
    """A member knows of a newer round: the last hub ended before that was written down, so it wins.

    Who else runs it is not known. They come within a lease, or may act no longer.
    """
    state = turn.state
    if round_ <= state.round or state.beat in (Beat.ENDING, Beat.ENDED):
        return
    turn.change(round=round_, gather_until=turn.now + state.plan.lease)
    if state.beat is not Beat.STOPPING:
        _stop_round(turn, f"the hub began again and did not know of round {round_}")


def room_for_one_more(state: RunState) -> bool:
    """Whether a newcomer is worth another round. One that is nearly done is not disturbed."""
    limit = state.plan.spec.max_membership_changes
    affordable = limit is None or state.membership_changes < limit
    return affordable and not state.done and len(state.live) < state.plan.max_members


def round_failed(turn: Turn, key: MemberKey, message: MemberFailed, overdue: frozenset[str]) -> None:
    """A member of the running round failed: all start again, or the run has failed."""
    note_failure(turn, key, message, first=True)
    state = turn.state
    silent = overdue.union(state.detached).intersection(member.node_id for member in state.live)
    if suspects := silent - {key.node_id}:
        # Workers die of a lost peer before the hub knows of the loss: judged once the round is gone.
        turn.change(suspects=suspects, suspect_lost=False)
        _stop_round(turn, f"{_first_cause(turn)}; waiting for a sign of life of silent nodes")
    elif pay_failure(turn):
        _stop_round(turn, _restart_reason(turn))


def note_failure(turn: Turn, key: MemberKey, message: MemberFailed, *, first: bool) -> None:
    """Keep the failure that happened first. `first` begins anew: another round has failed."""
    known = None if first else turn.state.first
    for aged in message.failures or (AgedFailure(failure=_group_failure(message)),):
        at = turn.now - max(aged.age, 0.0)
        if known is None or at < known.at:
            known = TimedFailure(_named(aged, key, message.round), at)
    turn.change(first=known)


def refine_failure(turn: Turn, key: MemberKey, message: MemberFailed) -> None:
    """Another failure of the round arrived: it may have happened first. Who was told otherwise hears it."""
    before = turn.state
    told = before.reason == _failed_reason(turn)
    note_failure(turn, key, message, first=False)
    if told and before.beat is Beat.ENDING and turn.state.first != before.first:
        turn.change(reason=_failed_reason(turn))
        turn.send(turn.state.nodes, farewell(turn.state))


def pay_failure(turn: Turn) -> bool:
    """Count the failure of a round, once, against the run's budget; false if that has ended the run."""
    state, limit = turn.state, turn.state.plan.spec.max_restarts
    if state.failure_counted:
        return True
    if state.restart_count >= limit:
        finish(turn, Phase.FAILED, _failed_reason(turn))
        return False
    turn.change(restart_count=state.restart_count + 1, failure_counted=True)
    return True


def finish(turn: Turn, phase: Phase, reason: str, grace: float | None = None) -> None:
    """The run is over: tell everyone, then wait, for a bounded time, until nobody runs."""
    state = turn.state
    owing: dict[MemberKey, Place | None] = {**state.live, **state.owing}
    present = {key: place for key, place in owing.items() if key.node_id not in state.detached}
    turn.change(
        beat=Beat.ENDING,
        outcome=phase,
        reason=reason,
        end_grace=grace,
        owing={} if phase is Phase.SUCCEEDED else present,
        live={},
        detached={},
        join_deadline=None,
        last_call_at=None,
        answer_deadline=turn.now + _grace(state, grace) + state.plan.answer_limit,
    )
    turn.journal()
    turn.send(state.nodes, farewell(turn.state))


def hasten(turn: Turn, grace: float) -> None:
    """Shorten the grace of a run that is ending; never lengthen it."""
    state = turn.state
    deadline = turn.now + grace + state.plan.answer_limit
    if state.answer_deadline is None or deadline >= state.answer_deadline:
        return
    turn.change(end_grace=grace, answer_deadline=deadline)
    turn.send(state.nodes, farewell(turn.state))


def farewell(state: RunState) -> RunFinished:
    """What a node is told of a run that is over."""
    return RunFinished(
        phase=state.outcome or Phase.LOST,
        first_failure=state.first.failure if state.first and state.outcome is Phase.FAILED else None,
        reason=state.reason,
        stop_grace=state.end_grace,
    )


def _stop_if_answered(turn: Turn) -> None:
    if turn.state.owing and _reached(turn.state.answer_deadline, turn.now):
        _lose_unanswered(turn)
    if not turn.state.owing and turn.now >= turn.state.gather_until:
        _settle(turn)


def _form_if_ripe(turn: Turn) -> None:
    state = turn.state
    if len(ready(state)) < state.plan.min_members:
        if _reached(state.join_deadline, turn.now):
            finish(turn, Phase.FAILED, sentences.join_timeout(state))
        elif state.last_call_at is not None:
            turn.change(last_call_at=None)
        return
    if _all_there(state):
        _form(turn)
    elif state.last_call_at is None:
        turn.change(last_call_at=turn.now + state.plan.last_call)
    if turn.state.beat is Beat.FORMING and _reached(turn.state.last_call_at, turn.now):
        _form(turn)


def _all_there(state: RunState) -> bool:
    """Nobody else is worth waiting for."""
    plan, able = state.plan, ready(state)
    if len(able) >= plan.max_members:
        return True
    if not plan.expected or len(able) < len(plan.expected) - len(state.left):
        return False
    there = {as_listed(state, key) for key in able}
    return all(member in there for member in awaited(state))


def _form(turn: Turn) -> None:
    state = turn.state
    members = seat(state)
    places = assign(state, members, state.round + 1)
    spares = without(state.waiting, members)
    turn.change(
        beat=Beat.RUNNING,
        reason="",
        round=state.round + 1,
        order=tuple(members),
        waiting=spares,
        live=places,
        done={},
        join_deadline=None,
        last_call_at=None,
        answer_deadline=None,
        gather_until=0.0,
        failure_counted=False,
        suspects=frozenset(),
        suspect_lost=False,
    )
    turn.journal()
    turn.give(places)
    for key in spares:
        turn.send([key.node_id], MemberWaiting(role=key.role, reason=sentences.full(turn.state)))


def _stop_round(turn: Turn, reason: str) -> None:
    state = turn.state
    lease_end = turn.now + state.plan.lease
    owing: dict[MemberKey, Place | None] = {**state.live, **state.done}
    turn.change(
        beat=Beat.STOPPING,
        reason=reason,
        owing=owing,
        live={},
        done={},
        answer_deadline=turn.now + state.plan.stop_grace + state.plan.answer_limit,
        detached={node_id: min(until, lease_end) for node_id, until in state.detached.items()},
    )
    turn.journal()
    turn.send(node_ids(owing), StopRound(round=state.round, reason=reason))


def _lose_unanswered(turn: Turn) -> None:
    """They are alive and do not do what they are told: the others go on without them."""
    state = turn.state
    late = tuple(state.owing)
    if state.suspects.intersection(key.node_id for key in late):
        turn.change(suspect_lost=True)
    turn.forget(late)
    why = "did not stop the round in time"
    turn.change(
        behind={**state.behind, **dict.fromkeys(late, state.round)},
        out={**state.out, **dict.fromkeys(late, why)},
        reason=f"{_labels(turn, late)} {why}; the others go on without",
    )


def _settle(turn: Turn) -> None:
    """The round is gone everywhere: settle what it costs, then form the next one at once or wait for it."""
    state = turn.state
    if state.suspects:
        paid = (
            _pay_change(turn, f"{_first_cause(turn)} after a node of its round was lost")
            if state.suspect_lost
            else pay_failure(turn)
        )
        if not paid:
            return
    if len(ready(turn.state)) >= state.plan.min_members:
        _form(turn)
        return
    turn.change(
        beat=Beat.FORMING,
        join_deadline=turn.now + state.plan.join_timeout,
        last_call_at=None,
        answer_deadline=None,
        gather_until=0.0,
        failure_counted=False,
        suspects=frozenset(),
        suspect_lost=False,
    )
    turn.journal()


def _pay_change(turn: Turn, reason: str) -> bool:
    state, limit = turn.state, turn.state.plan.spec.max_membership_changes
    if limit is not None and state.membership_changes >= limit:
        finish(turn, Phase.FAILED, f"{reason}; membership changes used: {limit} of {limit}")
        return False
    turn.change(membership_changes=state.membership_changes + 1)
    return True


def _end(turn: Turn) -> None:
    turn.change(beat=Beat.ENDED, owing={}, answer_deadline=None)
    # The first failure may have been refined since the outcome was written.
    turn.journal()
    turn.emit(Ended())


def _first_cause(turn: Turn) -> str:
    first = turn.state.first
    if first is None:
        return "a member failed"
    node = turn.state.nodes.get(first.failure.node_id)
    return sentences.failure(first.failure, node.name if node else first.failure.node_id)


def _failed_reason(turn: Turn) -> str:
    state = turn.state
    return f"{_first_cause(turn)}; restarts used: {state.restart_count} of {state.plan.spec.max_restarts}"


def _restart_reason(turn: Turn) -> str:
    state = turn.state
    return f"{_first_cause(turn)}; restart {state.restart_count} of {state.plan.spec.max_restarts}"


def _group_failure(message: MemberFailed) -> Failure:
    return Failure(role=message.role, round=message.round, message=message.reason)


def _named(aged: AgedFailure, key: MemberKey, round_: int) -> Failure:
    """The failure with who it was, as the session proves it."""
    return replace(aged.failure, node_id=key.node_id, role=key.role, round=round_)


def _labels(turn: Turn, keys: Iterable[MemberKey]) -> str:
    return sentences.members(turn.label(key) for key in keys)


def _grace(state: RunState, grace: float | None) -> float:
    return state.plan.stop_grace if grace is None else grace


def _reached(at: float | None, now: float) -> bool:
    return at is not None and now >= at
