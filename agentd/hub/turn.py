"""One step in the making: the state so far, the effects so far, and the small changes all rooms share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from agentd.hub.messages import HubMessage
from agentd.hub.state import (
    Beat,
    Effect,
    HubRecord,
    Journal,
    MemberKey,
    Place,
    RecordedMember,
    RunState,
    Send,
)

K = TypeVar("K")
V = TypeVar("V")


class Turn:
    """Gathers what a step decides. Lives no longer than the step, so the step stays a pure function."""

    __slots__ = ("effects", "now", "state")

    def __init__(self, state: RunState, now: float) -> None:
        self.state = state
        self.now = now
        self.effects: list[Effect] = []

    def change(self, **fields: Any) -> None:
        """Go on with another state."""
        self.state = self.state.but(**fields)

    def emit(self, effect: Effect) -> None:
        """Add an effect behind those there are."""
        self.effects.append(effect)

    def send(self, node_ids: Iterable[str], message: HubMessage) -> None:
        """Tell one message to each of these nodes."""
        self.effects.extend(Send(node_id, message) for node_id in node_ids)

    def give(self, places: Mapping[MemberKey, Place]) -> None:
        """Tell members their places. What each of them said before it hears of that is late from now on."""
        nodes = dict(self.state.nodes)
        for key, (assignment, _) in places.items():
            node = nodes[key.node_id]
            nodes[key.node_id] = replace(node, told=with_(node.told, key.role, assignment.round))
            self.emit(Send(key.node_id, assignment))
        self.change(nodes=nodes)

    def journal(self) -> None:
        """Have what the state promises written before the effects that follow."""
        state = self.state
        self.emit(
            Journal(
                HubRecord(
                    round=state.round,
                    restart_count=state.restart_count,
                    membership_changes=state.membership_changes,
                    first_failure=state.first.failure if state.first else None,
                    outcome=state.outcome,
                    reason=state.reason,
                    members=tuple(_recorded(state)),
                    order=tuple((key.node_id, key.role) for key in state.order),
                    end_grace=state.end_grace,
                    stopping=state.beat is not Beat.RUNNING,
                    left=tuple(sorted(state.left)),
                )
            )
        )

    def forget(self, keys: Collection[MemberKey]) -> None:
        """Take members out of the round and of the queue for the next."""
        state = self.state
        self.change(
            waiting=without(state.waiting, keys),
            live=without(state.live, keys),
            done=without(state.done, keys),
            owing=without(state.owing, keys),
        )

    def no_longer_behind(self, keys: Collection[MemberKey]) -> None:
        """Nothing of an older round runs for these members."""
        self.change(behind=without(self.state.behind, keys))

    def label(self, key: MemberKey) -> str:
        """A member as people name it."""
        state = self.state
        node = state.nodes.get(key.node_id) or state.absent.get(key.node_id)
        return state.plan.member_name(node.name if node else key.node_id, key.role)

    def members_of(self, node_id: str) -> list[MemberKey]:
        """Every member the node could have."""
        return [MemberKey(node_id, role) for role in self.state.plan.roles]


def _recorded(state: RunState) -> Iterator[RecordedMember]:
    """The members of the round that have not said that it is gone."""
    for key in state.order:
        node = state.nodes.get(key.node_id)
        holding = next((m for m in (state.live, state.done, state.owing) if key in m), None)
        if node is not None and holding is not None:
            place = holding[key]
            yield RecordedMember(
                node_id=key.node_id,
                role=key.role,
                agent_uid=node.agent_uid,
                address=node.address,
                name=node.name,
                local_world_size=node.sizes.get(key.role, 0),
                master_port=place.offer.master_port if place is not None else 0,
            )


def with_(mapping: Mapping[K, V], key: K, value: V) -> Mapping[K, V]:
    """A copy with one entry more; an entry that was there keeps its place in the order."""
    return {**mapping, key: value}


def without(mapping: Mapping[K, V], keys: Collection[K]) -> Mapping[K, V]:
    """A copy without these entries, or the mapping itself if it has none of them."""
    found = [key for key in keys if key in mapping]
    if not found:
        return mapping
    rest = dict(mapping)
    for key in found:
        del rest[key]
    return rest


def node_ids(keys: Iterable[MemberKey]) -> list[str]:
    """The nodes of these members, each once, in their order."""
    return list(dict.fromkeys(key.node_id for key in keys))
