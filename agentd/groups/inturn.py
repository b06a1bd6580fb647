"""A node's members at their hub: none asks for a place while another one's round lingers here.

A hub that has gone on without this node does not wait for its old round. The node does: no worker of a new
round starts here beside one of a round that may not act any more, of whichever role.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentd.api.types import Failure
from agentd.groups.ports import Member


class InTurn:
    """Passes on what members say, their wishes for a place in turn. A `Member` itself."""

    def __init__(self, member: Member, lingers_beside: Callable[[str], bool]) -> None:
        """`lingers_beside(role)`: whether a round that may not act any more lives here in another role."""
        self._member = member
        self._lingers_beside = lingers_beside
        self._held: dict[str, Callable[[], None]] = {}
        """By role, its newest wish."""

    def ready(self, role: str, local_world_size: int, master_port: int, round_: int) -> None:
        """It wants a place."""
        self._wish(role, lambda: self._member.ready(role, local_world_size, master_port, round_))

    def gone(self, role: str, round_: int, master_port: int, unkillable: str = "") -> None:
        """Nothing of the round runs in it; with a port, it wants another place."""
        if master_port and not unkillable:
            self._wish(role, lambda: self._member.gone(role, round_, master_port))
        else:
            self._held.pop(role, None)
            self._member.gone(role, round_, master_port, unkillable)

    def failed(
        self, role: str, round_: int, failures: Sequence[tuple[Failure, float]], reason: str = ""
    ) -> None:
        """Its part of the round failed."""
        self._member.failed(role, round_, failures, reason)

    def done(self, role: str, round_: int) -> None:
        """All its workers succeeded."""
        self._member.done(role, round_)

    def leave(self, role: str, reason: str, *, failed: bool = False) -> None:
        """It takes no further part."""
        self._member.leave(role, reason, failed=failed)

    def go_on(self) -> None:
        """Something here has changed: say what had to wait and need not any more."""
        for role in [role for role in self._held if not self._lingers_beside(role)]:
            self._held.pop(role)()

    def _wish(self, role: str, say: Callable[[], None]) -> None:
        if self._lingers_beside(role):
            self._held[role] = say
        else:
            self._held.pop(role, None)
            say()
