"""How long a node may act for a round: one lease from when a heartbeat left that the hub has answered since.

All times are instants of CLOCK_BOOTTIME in seconds, never durations: they stay true however long they were on
their way or lay unread, and while the machine sleeps.
"""

from __future__ import annotations

from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """A hub that answered. No longer than it says can the hub have gone on without this node."""

    sent_at: float
    """When what the hub answered had left here."""
    valid_until: float
    stopped_round: int = 0
    """The newest round that must go here; 0: none. For older ones nothing holds."""
    stopped_until: float = 0.0
    """How long that round may act: the hub waits for its end that long and longer."""

    def until(self, round_: int) -> float:
        """Until when the node may act for this round; 0 if it may not."""
        if round_ > self.stopped_round:
            return self.valid_until
        return min(self.valid_until, self.stopped_until) if round_ == self.stopped_round else 0.0


NO_CONTACT = Contact(sent_at=0.0, valid_until=0.0)
"""The hub has never answered."""
