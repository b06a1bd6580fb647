"""A node never thinks that it may act when its hub may have gone on without it."""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.core.contact import Contact
from agentd.hub.contacts import ALL_ROUNDS, UNANSWERED_KEPT, Contacts

LEASE, GRACE, ANSWER_MARGIN, ROUND = 5.0, 8.0, 5.0, 3
Word: TypeAlias = "tuple[str, int]"


class World:
    """A node that runs ROUND, its hub, and the words between them, each under way as long as it likes."""

    def __init__(self, window: float) -> None:
        self.now = 100.0
        self.window = window
        self.node = Contacts(window)
        self.to_hub: deque[Word] = deque()
        self.to_node: deque[Word] = deque()
        self.sequence = 0
        self.sent: list[float] = []
        self.attached = False
        self.heard_at = self.now
        self.detached_until: float | None = self.now + max(window, 1.0)
        """When the hub gives a node without a stream up; it has one at the first hello."""
        self.stopping_until: float | None = None
        self.gone_on_at: float | None = None
        """When the hub has counted the node out of ROUND: others may write from then on."""
        self.dial()
        self.talk()

    def step(self, action: str, after: float) -> None:
        self.now += after
        self.judge()
        getattr(self, action)()

    # The node.

    def dial(self) -> None:
        """Its stream breaks, or was broken, and it opens another."""
        if self.attached and self.detached_until is None:
            stopping = self.stopping_until is not None
            self.detached_until = self.now + (LEASE if stopping else self.window)
        self.to_hub, self.to_node, self.sequence = deque([("hello", 0)]), deque(), 0
        self.node.dialled(self.now)
        self.sent.append(self.now)

    def beat(self) -> None:
        self.sequence += 1
        self.sent.append(self.now)
        self.node.sent(self.sequence, self.now)
        self.to_hub.append(("beat", self.sequence))

    def listen(self) -> None:
        if not self.to_node:
            return
        word, number = self.to_node.popleft()
        if word == "welcome":
            self.node.welcomed(LEASE)
        elif word == "stop":
            self.node.stopped(number, GRACE, self.now)
        else:
            self.node.answered(number, self.now)

    def talk(self) -> None:
        """All that is under way arrives, and a heartbeat and its answer at once."""
        for doing in (self.hear, self.listen, self.beat, self.hear, self.listen):
            while True:
                doing()
                under_way = {self.hear: self.to_hub, self.listen: self.to_node}.get(doing)
                if not under_way:
                    break

    # The hub.

    def judge(self) -> None:
        """The hub counts the node out as soon as it may."""
        if self.gone_on_at is not None:
            return
        limits = [self.stopping_until, self.detached_until]
        if self.attached and self.detached_until is None:
            limits.append(self.heard_at + LEASE)
        due = min((limit for limit in limits if limit is not None), default=self.now + 1.0)
        if due <= self.now:
            self.gone_on_at = due
            # Who is silent is hung up on; who does not stop in time still has its stream.
            self.attached = self.attached and due == self.stopping_until

    def hear(self) -> None:
        if not self.to_hub:
            return
        word, number = self.to_hub.popleft()
        self.heard_at = self.now
        if word == "beat":
            if not self.attached:
                return
            self.to_node.append(("answer", number))
            return
        self.attached, self.detached_until = True, None
        self.to_node.append(("welcome", 0))
        if self.gone_on_at is not None or self.stopping_until is not None:
            self.to_node.append(("stop", ROUND))

    def stop(self) -> None:
        if self.stopping_until is None:
            self.stopping_until = self.now + GRACE + LEASE + ANSWER_MARGIN
            if self.detached_until is not None:
                self.detached_until = min(self.detached_until, self.now + LEASE)
            elif self.attached:
                self.to_node.append(("stop", ROUND))


ACTIONS = st.sampled_from(["talk", "beat", "hear", "listen", "dial", "stop"])
PAUSES = st.sampled_from([0.0, 0.5, 2.0, 4.9, 6.0, 20.0])
STEPS = st.lists(st.tuples(ACTIONS, PAUSES), max_size=25)


@settings(max_examples=400)
@given(steps=STEPS, window=st.sampled_from([0.0, 2.0, LEASE, 60.0]))
def test_no_delay_lets_a_node_act_after_its_hub_may_have_gone_on(
    steps: list[tuple[str, float]], window: float
) -> None:
    world = World(window)
    for action, after in steps:
        world.step(action, after)
        contact = world.node.newest
        assert contact.valid_until <= max(world.sent) + LEASE
        assert any(contact.valid_until <= sent + LEASE for sent in world.sent if sent <= contact.sent_at) or (
            contact.valid_until == 0.0
        )
        if world.gone_on_at is not None:
            assert contact.until(ROUND) <= world.gone_on_at


def contact_at(now: float, window: float = 60.0) -> Contacts:
    """In touch: a heartbeat of `now` was answered at once."""
    contacts = Contacts(window)
    contacts.dialled(now - 1.0)
    contacts.welcomed(LEASE)
    contacts.sent(1, now)
    contacts.answered(1, now)
    return contacts


def test_an_answer_counts_from_when_its_heartbeat_was_sent() -> None:
    contacts = contact_at(100.0)
    contacts.sent(2, 101.0)
    answered = contacts.answered(2, 105.5)
    assert answered is not None
    assert (answered.sent_at, answered.valid_until, answered.until(ROUND)) == (101.0, 106.0, 106.0)


def test_a_heartbeat_of_a_broken_stream_proves_nothing() -> None:
    contacts = Contacts(60.0)
    contacts.dialled(99.0)
    contacts.welcomed(LEASE)
    contacts.sent(1, 100.0)
    contacts.dialled(101.0)
    contacts.welcomed(LEASE)
    assert contacts.answered(1, 101.5) is None
    assert contacts.newest == Contact(sent_at=0.0, valid_until=0.0)


def test_an_answer_before_the_welcome_proves_nothing() -> None:
    contacts = Contacts(60.0)
    contacts.dialled(100.0)
    contacts.sent(1, 100.1)
    assert contacts.answered(1, 100.2) is None


def test_a_place_is_contact_for_its_own_round_only() -> None:
    contacts = Contacts(60.0)
    contacts.dialled(100.0)
    contacts.welcomed(LEASE)
    placed = contacts.placed(ROUND, 102.0)
    assert placed.until(ROUND) == 105.0
    assert placed.until(ROUND - 1) == 0.0


def test_a_short_reattach_window_shortens_what_an_answer_proves() -> None:
    assert contact_at(100.0, window=2.0).newest.valid_until == 102.0
    assert contact_at(100.0, window=0.0).newest.valid_until == 100.0


def test_a_round_that_is_stopped_may_act_in_its_grace_and_no_longer() -> None:
    contacts = contact_at(100.0)
    stopped = contacts.stopped(ROUND, GRACE, 101.0)
    assert stopped.until(ROUND) == 105.0
    for sequence, now in enumerate(range(102, 130), start=2):
        contacts.sent(sequence, now)
        contacts.answered(sequence, now)
    assert contacts.newest.until(ROUND) == 105.0 + GRACE
    assert contacts.newest.until(ROUND - 1) == 0.0
    assert contacts.newest.until(ROUND + 1) == 134.0


def test_after_a_silence_a_stopped_round_may_not_act_although_its_grace_lasts() -> None:
    contacts = contact_at(100.0)
    contacts.stopped(ROUND, 600.0, 101.0)
    contacts.sent(2, 106.0)
    after = contacts.answered(2, 106.0)
    assert after is not None
    assert after.until(ROUND) == 0.0


def test_a_round_stopped_after_a_silence_may_not_act_at_all() -> None:
    contacts = contact_at(100.0)
    assert contacts.stopped(ROUND, 600.0, 105.0).until(ROUND) == 0.0
    contacts.sent(2, 105.1)
    contacts.answered(2, 105.2)
    assert contacts.newest.until(ROUND) == 0.0


@pytest.mark.parametrize(("second", "until"), [(1.0, 106.0), (30.0, 113.0)], ids=["shorter", "longer"])
def test_the_end_of_a_run_leaves_its_grace_which_only_gets_shorter(second: float, until: float) -> None:
    contacts = contact_at(100.0)
    contacts.finished(GRACE, 101.0)
    contacts.finished(second, 102.0)
    contacts.sent(2, 102.0)
    contacts.answered(2, 102.0)
    for sequence, now in enumerate((106.0, 110.0, 114.0), start=3):
        contacts.sent(sequence, now)
        contacts.answered(sequence, now)
    assert contacts.newest.stopped_round == ALL_ROUNDS
    assert contacts.newest.stopped_until == until


def test_what_is_remembered_of_unanswered_heartbeats_is_bounded() -> None:
    contacts: Any = contact_at(100.0)
    for sequence in range(2, 10 * UNANSWERED_KEPT):
        contacts.sent(sequence, 100.0)
    assert len(contacts._sent) == UNANSWERED_KEPT
    assert contacts.answered(2, 100.0) is None
