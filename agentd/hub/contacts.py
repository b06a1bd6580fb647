"""What a node may conclude from its hub's answers: the pure part. `now` is CLOCK_BOOTTIME, in seconds.

The hub takes a node for lost one lease after it last *heard* of it, or one re-attach window after its stream
broke, so a node that counts from when the answered word was *sent* is never later than its hub. A round that
the hub stops is waited for: its grace, and then longer than a lease. It may act as long, so that a worker
can save its state in the grace, but only while nothing was missed: who is out of touch may be left out.
"""

from __future__ import annotations

from collections import OrderedDict

from agentd.core.contact import NO_CONTACT, Contact

UNANSWERED_KEPT = 256
"""Heartbeats that may be under way; older ones prove nothing any more."""
ALL_ROUNDS = (1 << 53) - 1


class Contacts:
    """The contact of one node with the hub of one run, over all its streams."""

    def __init__(self, reattach_window: float) -> None:
        self._window = reattach_window
        self._lease = 0.0
        self._hello_sent = 0.0
        self._sent: OrderedDict[int, float] = OrderedDict()
        self._newest = NO_CONTACT

    @property
    def newest(self) -> Contact:
        """What is known now; never valid if the hub has not answered yet."""
        return self._newest

    def lapsed(self, now: float) -> bool:
        """Whether the hub may have counted this node out since it answered last: its words may be stale."""
        return now >= max(self._newest.sent_at, self._hello_sent) + self._lease

    def dialled(self, now: float) -> None:
        """A hello leaves on a new stream; what is under way on older ones is not answered any more."""
        self._hello_sent = now
        self._sent.clear()
        self._lease = 0.0

    def welcomed(self, lease: float) -> None:
        """The hub took the hello. That it says which round must go comes next, so nothing is proved yet."""
        self._lease = lease

    def sent(self, sequence: int, now: float) -> None:
        """A heartbeat leaves at `now` or later."""
        self._sent[sequence] = now
        while len(self._sent) > UNANSWERED_KEPT:
            self._sent.popitem(last=False)

    def answered(self, sequence: int, now: float) -> Contact | None:
        """The hub has read this heartbeat; None if that proves nothing.

        Before its welcome it may not have looked at what the node has.
        """
        sent_at = self._sent.pop(sequence, None)
        if sent_at is None or not self._lease:
            return None
        for older in [each for each in self._sent if each < sequence]:
            del self._sent[older]
        return self._prove(sent_at, now)

    def placed(self, round_: int, now: float) -> Contact:
        """The node has a place in a new round, given after the hello was read; older rounds are past."""
        if round_ - 1 > self._newest.stopped_round:
            self._stop(round_ - 1, 0.0)
        return self._prove(self._hello_sent, now)

    def stopped(self, round_: int, grace: float, now: float) -> Contact:
        """The hub wants a round gone and waits for that, the grace and then longer than a lease."""
        known = self._newest
        if round_ < known.stopped_round:
            return known
        until = known.valid_until + grace if now < known.valid_until else 0.0
        self._stop(round_, min(until, known.stopped_until) if round_ == known.stopped_round else until)
        return self._newest

    def finished(self, grace: float, now: float) -> Contact:
        """The run is over, or nothing of it is to run here any more."""
        return self.stopped(ALL_ROUNDS, grace, now)

    def _prove(self, sent_at: float, now: float) -> Contact:
        known = self._newest
        valid_until = max(known.valid_until, sent_at + min(self._lease, self._window))
        # After a silence the hub may long have formed a round without this node.
        stopped_until = known.stopped_until if now < known.valid_until else 0.0
        self._newest = Contact(
            sent_at=max(known.sent_at, sent_at),
            valid_until=valid_until,
            stopped_round=known.stopped_round,
            stopped_until=stopped_until,
        )
        return self._newest

    def _stop(self, round_: int, until: float) -> None:
        known = self._newest
        self._newest = Contact(
            sent_at=known.sent_at,
            valid_until=known.valid_until,
            stopped_round=round_,
            stopped_until=until,
        )
