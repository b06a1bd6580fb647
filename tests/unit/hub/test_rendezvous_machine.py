"""Any order of joins, losses, failures, late and repeated words: what holds at every moment.

Nodes speak through the same `MemberBook` as the real member session; their streams are queues that can be
cut at any time, and words of old streams and old rounds are thrown in again. The groups of a node hear of
what its book has taken only later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentd.api.errors import AgentError
from agentd.api.types import Failure, Phase
from agentd.hub.core import due
from agentd.hub.memberbook import MemberBook
from agentd.hub.messages import (
    Assignment,
    HubMessage,
    MemberCondition,
    MemberLeaving,
    MemberMessage,
    MemberReady,
    RunFinished,
    SessionHello,
    StopRound,
)
from agentd.hub.state import Attached, Beat, MemberKey, NodeSilent, Received, StreamEnded, Tick
from tests.unit.hub.rig import Rig, make_spec

pytestmark = pytest.mark.timeout(600)

NODES = ("a", "b", "c", "d", "e")
LISTED = NODES[:3]
MAX_RESTARTS = 3
MAX_CHANGES = 6
LATE = 100_000.0
CALM = st.booleans()


@dataclass
class SimNode:
    """A node whose workers are numbers: the round that runs, or none."""

    name: str
    epoch: int = 0
    connected: bool = False
    book: MemberBook = field(default_factory=MemberBook)
    to_hub: deque[MemberMessage] = field(default_factory=deque)
    from_hub: deque[HubMessage] = field(default_factory=deque)
    to_group: deque[Assignment | StopRound] = field(default_factory=deque)
    heard: int = 0
    """Newest round the group has had a place in."""
    running: int = 0
    """Round whose workers run; 0: none."""
    stopping: int = 0
    hosted: bool = False
    left: bool = False
    finished: bool = False
    port: int = 20_000

    @property
    def must_stop(self) -> bool:
        return bool(self.stopping or (self.running and (self.left or self.finished)))

    @property
    def works(self) -> bool:
        return bool(self.running and not self.left and not self.finished)

    def say(self, message: MemberMessage | None) -> None:
        if message is not None and self.connected:
            self.to_hub.append(message)

    @property
    def condition(self) -> MemberCondition | None:
        states = self.book.states()
        return states[0].condition if states else None

    @property
    def wants_a_place(self) -> bool:
        """Its offer stands, and neither it nor the hub has anything more to say or hear."""
        quiet = not (self.to_hub or self.from_hub or self.to_group)
        here = self.connected and self.hosted and not self.left and not self.finished
        return quiet and here and self.condition is MemberCondition.JOINING

    def offer(self) -> None:
        self.port += 1
        self.say(self.book.ready("default", 2, self.port, self.heard))

    def hear(self, message: HubMessage) -> None:
        if isinstance(message, Assignment) and self.book.assigned(message):
            self.to_group.append(message)
        elif isinstance(message, StopRound):
            answers, act = self.book.stop(message)
            for answer in answers:
                self.say(answer)
            if act:
                self.to_group.append(message)
        elif isinstance(message, RunFinished):
            self.finished = True
            self.book.finish()

    def group_hears(self) -> None:
        while self.to_group:
            message = self.to_group.popleft()
            if isinstance(message, Assignment):
                assert not self.running, "an old round is still running here"
                self.running = self.heard = message.round
            elif self.running:
                self.stopping = message.round
            else:
                # It was done: hosted again, it offers itself at once.
                self.offer()


class RendezvousMachine(RuleBasedStateMachine):
    """A hub and five nodes, three of them listed, in a round of two to four."""

    rig: Rig

    @initialize(
        fewest=st.integers(1, 3),
        most=st.integers(3, 4),
        listed=st.booleans(),
        here=st.permutations(NODES).map(lambda names: names[:4]),
    )
    def begin(self, fewest: int, most: int, listed: bool, here: list[str]) -> None:
        spec = make_spec(
            LISTED if listed else (),
            fewest=fewest,
            most=most,
            max_restarts=MAX_RESTARTS,
            max_membership_changes=MAX_CHANGES,
        )
        self.rig = Rig(spec)
        self.nodes = {name: SimNode(name) for name in NODES}
        self.history: list[tuple[str, int, MemberMessage]] = []
        self.highest_round = 0
        self.written_round = 0
        self.given_up: set[str] = set()
        for name in here:
            self.connect(self.nodes[name])
        self.all_words_arrive(here)

    # --- the world ------------------------------------------------------------------------------------

    def post_received(self, node: SimNode, message: MemberMessage) -> None:
        self.history.append((node.name, node.epoch, message))
        self.rig.post(Received(node.name, node.epoch, message))
        self.dispatch()

    def dispatch(self) -> None:
        """Put what the hub said into the nodes' streams, and cut the streams it closed."""
        for effect in self.rig.log:
            kind = type(effect).__name__
            if kind == "Journal":
                self.written_round = self.rig.records[-1].round
        self.rig.log.clear()
        for name, message in self.rig.told:
            node = self.nodes[name]
            if isinstance(message, Assignment):
                assert message.round <= self.written_round, "announced before it was written"
            if node.connected:
                node.from_hub.append(message)
        self.rig.told.clear()
        self.given_up.update(key.node_id for key in self.rig.state.out)
        for name, epoch in self.rig.closed:
            self.given_up.add(name)
            node = self.nodes[name]
            if node.connected and node.epoch == epoch:
                self.cut(node)
        self.rig.closed.clear()

    def cut(self, node: SimNode) -> None:
        if node.left:
            # To end its stream is a leaving node's word that nothing runs there any more.
            self.given_up.add(node.name)
        node.connected = False
        node.to_hub.clear()
        node.from_hub.clear()

    def connect(self, node: SimNode) -> None:
        if node.left:
            self.given_up.add(node.name)
        node.epoch += 1
        hello = SessionHello(
            run_id="run",
            incarnation=7,
            node_id=node.name,
            agent_uid=f"uid-{node.name}",
            session_epoch=node.epoch,
            address=f"{node.name}.example:7460",
            members=node.book.states(),
            reattach_window=5.0,
        )
        node.connected = True
        node.to_hub.clear()
        node.from_hub.clear()
        self.rig.post(Attached(hello))
        self.dispatch()
        for message in node.book.unanswered(self.rig.now):
            node.say(message)
        if not node.hosted and not node.left:
            node.hosted = True
            node.offer()

    # --- what can happen --------------------------------------------------------------------------------

    def some(self, data: st.DataObject, **wanted: bool) -> SimNode | None:
        """One of the nodes of which all this is true."""
        found = [
            name
            for name, node in self.nodes.items()
            if all(bool(getattr(node, trait)) is value for trait, value in wanted.items())
        ]
        return self.nodes[data.draw(st.sampled_from(found))] if found else None

    def all_words_arrive(self, order: Sequence[str]) -> None:
        for _ in range(4):
            for name in order:
                self.hub_reads(self.nodes[name], 100)
            for name in order:
                self.node_reads(self.nodes[name], 100)

    def all_stopped_workers_end(self, order: Sequence[str]) -> None:
        self.all_words_arrive(order)
        for name in order:
            if self.nodes[name].must_stop:
                self.stop_here(self.nodes[name])
        self.all_words_arrive(order)

    @rule(order=st.permutations(NODES), calm=CALM)
    def words_arrive(self, order: list[str], calm: bool) -> None:
        self.settle(order, calm)

    @rule(order=st.permutations(NODES))
    def it_is_calm_for_a_while(self, order: list[str]) -> None:
        for name in order:
            node = self.nodes[name]
            if not node.connected and not node.finished:
                self.connect(node)
        self.settle(order, calm=True)
        self.rig.wait(2)
        self.dispatch()
        self.settle(order, calm=True)

    def after(self, calm: bool) -> None:
        """Half of the time all have heard of what happened before the next thing does."""
        if calm:
            self.settle(NODES, calm=True)

    def settle(self, order: Sequence[str], calm: bool) -> None:
        self.all_words_arrive(order)
        if calm:
            self.all_stopped_workers_end(order)

    @rule(name=st.sampled_from(NODES), count=st.integers(1, 3), hub=st.booleans(), slow=st.booleans())
    def some_words_arrive(self, name: str, count: int, hub: bool, slow: bool) -> None:
        if hub:
            self.hub_reads(self.nodes[name], count)
        else:
            self.node_reads(self.nodes[name], count, slow=slow)

    def hub_reads(self, node: SimNode, count: int) -> None:
        while node.to_hub and count:
            self.post_received(node, node.to_hub.popleft())
            count -= 1

    def node_reads(self, node: SimNode, count: int, *, slow: bool = False) -> None:
        """`slow`: its group hears nothing of it yet."""
        while node.from_hub and count:
            node.hear(node.from_hub.popleft())
            count -= 1
        before = node.running
        if not slow:
            node.group_hears()
        if node.running != before and node.running == self.rig.state.round:
            self.given_up.discard(node.name)

    @rule(data=st.data(), calm=CALM)
    def a_node_connects(self, data: st.DataObject, calm: bool) -> None:
        if node := self.some(data, connected=False, finished=False):
            self.connect(node)
        self.after(calm)

    @rule(data=st.data(), calm=CALM)
    def a_node_connects_again_before_its_stream_ended(self, data: st.DataObject, calm: bool) -> None:
        if node := self.some(data, connected=True, finished=False):
            self.connect(node)
        self.after(calm)

    @rule(data=st.data(), noticed=st.booleans(), calm=CALM)
    def a_stream_breaks(self, data: st.DataObject, noticed: bool, calm: bool) -> None:
        if node := self.some(data, connected=True):
            self.cut(node)
            if noticed:
                self.rig.post(StreamEnded(node.name, node.epoch))
                self.dispatch()
        self.after(calm)

    @rule(data=st.data(), ended=st.booleans(), calm=CALM)
    def a_cut_stream_is_noticed(self, data: st.DataObject, ended: bool, calm: bool) -> None:
        if node := self.some(data, connected=False):
            kind = StreamEnded if ended else NodeSilent
            self.rig.post(kind(node.name, node.epoch))
            self.dispatch()
        self.after(calm)

    @rule(data=st.data(), calm=CALM)
    def a_living_node_is_taken_for_lost(self, data: st.DataObject, calm: bool) -> None:
        if node := self.some(data, connected=True):
            self.rig.post(NodeSilent(node.name, node.epoch))
            self.dispatch()
        self.after(calm)

    @rule(data=st.data(), unkillable=st.sampled_from([False, False, False, True]), calm=CALM)
    def a_stopped_worker_ends(self, data: st.DataObject, unkillable: bool, calm: bool) -> None:
        if node := self.some(data, must_stop=True):
            self.stop_here(node, unkillable=unkillable and not node.left)
        self.after(calm)

    def stop_here(self, node: SimNode, *, unkillable: bool = False) -> None:
        round_, node.running, node.stopping = node.running, 0, 0
        node.port += 1
        port = 0 if node.left or node.finished else node.port
        node.say(node.book.gone("default", round_, port, "pid 9 in D state" if unkillable else ""))

    @rule(data=st.data(), age=st.floats(0, 3), calm=CALM)
    def a_worker_fails(self, data: st.DataObject, age: float, calm: bool) -> None:
        if node := self.some(data, works=True):
            failure = Failure(rank=1, exit_code=1)
            node.say(node.book.failed("default", node.running, [(failure, age)], "", self.rig.now))
        self.after(calm)

    @rule(data=st.data(), calm=CALM)
    def workers_succeed(self, data: st.DataObject, calm: bool) -> None:
        if node := self.some(data, works=True, stopping=False):
            self.succeed(node)
        self.after(calm)

    def succeed(self, node: SimNode) -> None:
        round_, node.running = node.running, 0
        node.say(node.book.done("default", round_))

    @rule(data=st.data())
    def a_host_is_lost_and_started_again(self, data: st.DataObject) -> None:
        """A member that waits for its place offers another port."""
        if node := self.some(data, hosted=True, running=False, left=False, finished=False):
            if node.condition in (MemberCondition.JOINING, MemberCondition.RUNNING):
                node.offer()

    @rule(data=st.data(), read=st.integers(0, 2), calm=CALM)
    def hosts_are_lost_behind_a_link_that_is_stuck(self, data: st.DataObject, read: int, calm: bool) -> None:
        """Rare enough by chance: its offers are late, and the others go on without it."""
        if not (node := self.some(data, connected=True, hosted=True, running=False, left=False)):
            return
        if node.finished or node.condition not in (MemberCondition.JOINING, MemberCondition.RUNNING):
            return
        others = [name for name in NODES if name != node.name]
        for _ in range(2):
            node.offer()
            self.settle(others, calm=True)
            self.hub_reads(node, read)
        for seconds in (1.0, 50.0):
            self.settle(others, calm=True)
            self.time_passes(seconds)
        if calm:
            self.settle(NODES, calm=False)

    @rule(data=st.data(), really=st.sampled_from([False, True]))
    def a_node_leaves(self, data: st.DataObject, really: bool) -> None:
        if really and (node := self.some(data, hosted=True, left=False)):
            node.left = True
            node.say(node.book.leave("default", "asked to"))

    @rule(data=st.data(), calm=CALM)
    def an_agentd_is_started_again_without_workers(self, data: st.DataObject, calm: bool) -> None:
        if old := self.some(data, finished=False):
            self.nodes[old.name] = SimNode(old.name, epoch=old.epoch, port=old.port + 100)
            self.connect(self.nodes[old.name])
        self.after(calm)

    @rule(data=st.data())
    def old_words_are_heard_again(self, data: st.DataObject) -> None:
        """Words of a replaced stream, or about a round, in any order: no promise is broken by them."""
        old = [
            (name, epoch, message)
            for name, epoch, message in self.history
            if epoch < self.nodes[name].epoch or not isinstance(message, MemberReady | MemberLeaving)
        ]
        if old:
            name, epoch, message = data.draw(st.sampled_from(old))
            self.rig.post(Received(name, epoch, message))
            self.dispatch()

    @rule(name=st.sampled_from(NODES), back=st.integers(0, 2))
    def an_old_session_says_hello_again(self, name: str, back: int) -> None:
        node = self.nodes[name]
        if name in self.rig.state.nodes and node.epoch > back:
            before = self.rig.state
            try:
                self.rig.hello(name, epoch=node.epoch - back)
            except AgentError:
                assert self.rig.state is before
            else:
                raise AssertionError("an old session was taken")

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 6.0, 50.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.wait(seconds)
        self.dispatch()

    @precondition(lambda self: self.rig.state.round > 2)
    @rule(grace=st.sampled_from([None, 0.0, 5.0]))
    def somebody_terminates(self, grace: float | None) -> None:
        self.rig.terminate(grace)
        self.dispatch()

    # --- what holds at every moment -----------------------------------------------------------------------

    @invariant()
    def each_member_is_in_one_place(self) -> None:
        state = self.rig.state
        places = [state.waiting, state.live, state.done, state.owing]
        keys = [key for place in places for key in place]
        assert len(keys) == len(set(keys))
        assert {key.node_id for key in keys} <= set(state.nodes)
        assert set(state.detached) <= set(state.nodes)
        assert not {key.node_id for key in state.waiting} & set(state.detached)

    @invariant()
    def ranks_are_a_permutation_and_sizes_agree(self) -> None:
        state = self.rig.state
        places = [place.assignment for place in state.live.values() if place is not None]
        if not places:
            return
        size = len(state.order)
        assert state.plan.min_members <= size <= state.plan.max_members
        assert {(place.group_world_size, place.world_size) for place in places} == {(size, 2 * size)}
        assert [place.group_rank for place in places] == [state.order.index(key) for key in state.live]
        assert all(place.rank_base == 2 * place.group_rank for place in places)
        assert len({(place.master_addr, place.master_port, place.round) for place in places}) == 1

    @invariant()
    def no_worker_of_an_older_round_runs_beside_a_new_one(self) -> None:
        """The heart. Only nodes the hub has given up, as lost or unkillable, may be behind."""
        state = self.rig.state
        for name, node in self.nodes.items():
            assert node.running <= state.round
            if 0 < node.running < state.round:
                assert name in self.given_up
                assert MemberKey(name, "default") not in state.live

    @invariant()
    def numbers_only_grow_and_budgets_hold(self) -> None:
        state = self.rig.state
        assert state.round >= self.highest_round
        self.highest_round = state.round
        assert state.restart_count <= MAX_RESTARTS
        assert state.membership_changes <= MAX_CHANGES

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        state = self.rig.state
        if state.beat in (Beat.FORMING, Beat.STOPPING, Beat.ENDING):
            assert due(state) is not None

    @invariant()
    def who_wants_a_place_is_waited_with(self) -> None:
        """Nobody is left out who has heard all and still offers itself: no offer is lost."""
        state = self.rig.state
        if state.beat in (Beat.ENDING, Beat.ENDED):
            return
        for name, node in self.nodes.items():
            assert not node.wants_a_place or MemberKey(name, "default") in state.waiting, name

    # --- and it ends --------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Faults stop; the nodes that are there do their work. The run comes to an end."""
        if not hasattr(self, "rig"):
            return
        for node in self.nodes.values():
            if not node.connected and not node.finished:
                self.connect(node)
        for _ in range(200):
            if self.rig.state.beat is Beat.ENDED:
                break
            self.everybody_does_its_part()
            self.rig.now += 1.0
            self.rig.post(Tick())
            self.dispatch()
        else:
            self.rig.wait(LATE)
        assert self.rig.state.beat is Beat.ENDED
        assert self.rig.phase() in (Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED)

    def everybody_does_its_part(self) -> None:
        for node in self.nodes.values():
            if not node.connected and not node.finished:
                self.connect(node)
            self.hub_reads(node, 1000)
            self.node_reads(node, 1000)
            if node.must_stop:
                self.stop_here(node)
            elif node.running:
                self.succeed(node)


TestRendezvousMachine = RendezvousMachine.TestCase
TestRendezvousMachine.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
