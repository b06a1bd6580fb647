"""What a member's report changes. A report that came late, twice or out of order changes nothing."""

from __future__ import annotations

from dataclasses import replace

from agentd.api.types import Phase
from agentd.hub import sentences
from agentd.hub.messages import (
    MemberDone,
    MemberFailed,
    MemberLeaving,
    MemberMessage,
    MemberReady,
    MemberWaiting,
    RoundGone,
)
from agentd.hub.ranks import as_listed, enough_may_come, ready
from agentd.hub.rounds import (
    finish,
    hear_of,
    membership_changed,
    note_failure,
    pay_failure,
    refine_failure,
    room_for_one_more,
    round_failed,
)
from agentd.hub.state import Beat, MemberKey, Offer, Place, Received, Send
from agentd.hub.turn import Turn, with_, without


def receive(turn: Turn, event: Received) -> None:
    """Hear a member's report, if its session is the node's newest and its role one of the run's."""
    node = turn.state.nodes.get(event.node_id)
    key = MemberKey(event.node_id, event.message.role)
    if node is None or node.epoch != event.epoch or event.node_id in turn.state.detached:
        return
    if key.role not in turn.state.plan.roles:
        return
    caught_up = _catches_up(turn, key, event.message)
    if caught_up:
        turn.no_longer_behind([key])
    match event.message:
        case MemberReady() as message:
            _ready(turn, key, message)
        case RoundGone() as message:
            _gone(turn, key, message)
        case MemberFailed() as message:
            _failed(turn, key, message, event.overdue)
        case MemberDone() as message:
            done(turn, key, message.round)
        case MemberLeaving() as message:
            _leaving(turn, key, message)
    if caught_up:
        _let_in(turn, key.node_id)


def done(turn: Turn, key: MemberKey, round_: int) -> None:
    """The member's workers succeeded; with the last member, the run has."""
    state = turn.state
    if round_ != state.round:
        return
    if state.beat is Beat.ENDING:
        turn.change(owing=without(state.owing, [key]))
    elif key in state.live:
        turn.change(live=without(state.live, [key]), done=with_(state.done, key, state.live[key]))
        if not turn.state.live:
            finish(turn, Phase.SUCCEEDED, sentences.succeeded(len(turn.state.done)))


def _catches_up(turn: Turn, key: MemberKey, message: MemberMessage) -> bool:
    """Whether it says that nothing runs of the older round for which its node has no place."""
    round_ = turn.state.behind.get(key)
    if round_ is None or isinstance(message, MemberFailed | MemberLeaving):
        return False
    return message.round >= round_


def _let_in(turn: Turn, node_id: str) -> None:
    """Other members of the node may have waited for that."""
    state = turn.state
    waited = [key for key in ready(state) if key.node_id == node_id]
    if waited and state.beat is Beat.RUNNING and room_for_one_more(state):
        membership_changed(turn, f"{turn.label(waited[0])} joined")


def _ready(turn: Turn, key: MemberKey, message: MemberReady) -> None:
    hear_of(turn, message.round)
    state = turn.state
    offer = Offer(message.local_world_size, message.master_port)
    _remember_size(turn, key, message.local_world_size)
    if key in state.leaving:
        turn.change(leaving=state.leaving - {key})
    if key in state.live:
        place = state.live[key]
        if place is not None and place.offer == offer and message.round < state.round:
            _place_again(turn, key, place)
        else:
            membership_changed(turn, f"{turn.label(key)} came back without its workers")
    elif key in state.owing:
        if message.round >= state.round:
            # It knows of the round and runs nothing: that is the answer it owes.
            _answered(turn, key, RoundGone(role=key.role, round=state.round, master_port=offer.master_port))
    elif key not in state.done and not _crossed(turn, key, message.round):
        _offer(turn, key, offer)


def _gone(turn: Turn, key: MemberKey, message: RoundGone) -> None:
    state = turn.state
    if key in state.owing:
        if state.beat is Beat.ENDING or message.round == state.round:
            _answered(turn, key, message)
    elif key in state.live:
        place = state.live[key]
        if message.round == state.round:
            _gone_unasked(turn, key, message)
        elif place is not None and message.master_port == place.offer.master_port:
            _place_again(turn, key, place)
        elif not _crossed(turn, key, message.round):
            # The place went to an earlier session of its node; what was offered for it is gone.
            turn.forget([key])
            membership_changed(turn, f"{turn.label(key)} came back without its workers")
            _offer_again(turn, key, message)
    elif key in state.waiting:
        if message.round == state.round:
            _offer_again(turn, key, message)
    elif key not in state.done and key not in state.leaving and message.round <= state.round:
        # It was left out as lost and is back.
        if not _crossed(turn, key, message.round):
            _offer_again(turn, key, message)


def _answered(turn: Turn, key: MemberKey, message: RoundGone) -> None:
    state = turn.state
    stays = state.beat is Beat.STOPPING and key not in state.leaving
    turn.forget([key])
    if stays and message.unkillable:
        turn.change(
            out=with_(turn.state.out, key, message.unkillable),
            reason=f"{turn.label(key)} is left out: {message.unkillable}",
        )
    elif stays:
        _offer_again(turn, key, message)


def _gone_unasked(turn: Turn, key: MemberKey, message: RoundGone) -> None:
    turn.forget([key])
    if message.unkillable:
        turn.change(out=with_(turn.state.out, key, message.unkillable))
        membership_changed(turn, f"{turn.label(key)} is left out: {message.unkillable}")
        return
    membership_changed(turn, f"the workers of {turn.label(key)} are gone")
    _offer_again(turn, key, message)


def _crossed(turn: Turn, key: MemberKey, round_: int) -> bool:
    """Whether a newer place was on its way to the member when it said that.

    It will start that round, or has. Left out since, it was also told to stop it: its answer is the offer.
    """
    return round_ < turn.state.nodes[key.node_id].told.get(key.role, 0)


def _place_again(turn: Turn, key: MemberKey, place: Place) -> None:
    """It still waits for its place: the stream broke before the assignment arrived."""
    turn.give({key: place})


def _offer_again(turn: Turn, key: MemberKey, message: RoundGone) -> None:
    size = turn.state.nodes[key.node_id].sizes.get(key.role)
    # Without a port it wants no place: it has left, or ends.
    if size is not None and message.master_port and not message.unkillable:
        _offer(turn, key, Offer(size, message.master_port))


def _offer(turn: Turn, key: MemberKey, offer: Offer) -> None:
    state = turn.state
    if state.beat not in (Beat.FORMING, Beat.STOPPING, Beat.RUNNING):
        return
    turn.change(
        waiting=with_(state.waiting, key, offer),
        out=without(state.out, [key]),
        left=state.left - {as_listed(state, key)},
    )
    if state.beat is not Beat.RUNNING:
        return
    if room_for_one_more(state) and key in ready(turn.state):
        membership_changed(turn, f"{turn.label(key)} joined")
    else:
        turn.emit(Send(key.node_id, MemberWaiting(role=key.role, reason=sentences.full(state))))


def _failed(turn: Turn, key: MemberKey, message: MemberFailed, overdue: frozenset[str]) -> None:
    state = turn.state
    if message.round != state.round:
        return
    if key in state.live:
        round_failed(turn, key, message, overdue)
    elif key in state.owing:
        # Its workers may have died of the stop's own cause: counts once, and only if a failure it was.
        if state.failure_counted or state.suspects or state.outcome is Phase.FAILED:
            refine_failure(turn, key, message)
    elif not message.failures and key not in state.done and key not in state.behind:
        _failed_before_start(turn, key, message)


def _failed_before_start(turn: Turn, key: MemberKey, message: MemberFailed) -> None:
    """The group lost what it needs to take part; it will offer itself again."""
    turn.forget([key])
    state = turn.state
    if state.beat is Beat.FORMING and not state.failure_counted:
        note_failure(turn, key, message, first=True)
        if pay_failure(turn):
            turn.journal()


def _leaving(turn: Turn, key: MemberKey, message: MemberLeaving) -> None:
    state = turn.state
    if state.beat is Beat.ENDING:
        return
    turn.change(leaving=state.leaving | {key})
    news = _no_longer_awaited(turn, key)
    if key in state.live:
        reason = f"{turn.label(key)} leaves" + (f": {message.reason}" if message.reason else "")
        membership_changed(turn, reason)
    elif key not in state.owing:
        turn.forget([key])
    if message.failed:
        _given_up(turn, key, message.reason)
    if news and turn.state.beat in (Beat.FORMING, Beat.RUNNING):
        # While a round is being stopped what is written next says it too.
        turn.journal()


def _no_longer_awaited(turn: Turn, key: MemberKey) -> bool:
    """A listed member has left; tells whether that is news."""
    state, member = turn.state, as_listed(turn.state, key)
    if member not in state.plan.expected or member in state.left:
        return False
    turn.change(left=state.left | {member})
    return True


def _given_up(turn: Turn, key: MemberKey, reason: str) -> None:
    """A run that waits for members in vain has failed: nobody else is to come."""
    turn.change(out=with_(turn.state.out, key, reason))
    if turn.state.beat is Beat.FORMING and not enough_may_come(turn.state):
        finish(turn, Phase.FAILED, f"{turn.label(key)} cannot take part: {reason}")


def _remember_size(turn: Turn, key: MemberKey, size: int) -> None:
    node = turn.state.nodes[key.node_id]
    if node.sizes.get(key.role) != size:
        node = replace(node, sizes=with_(node.sizes, key.role, size))
        turn.change(nodes=with_(turn.state.nodes, key.node_id, node))
