"""What a run uses where its spec says nothing: the one owner of what hub, groups and host must agree on.

All in seconds.
"""

from __future__ import annotations

from typing import Final

HEARTBEAT: Final = 1.0
"""Interval of a node's heartbeats to its hub; with more than 500 members longer, up to half a lease."""

LEASE: Final = 5.0
"""Silence after which a node is lost."""

REATTACH_WINDOW: Final = 60.0
"""How long a node whose stream broke keeps its place, its workers going on meanwhile."""

JOIN_TIMEOUT: Final = 600.0
"""How long a run waits for its smallest round."""

LAST_CALL: Final = 5.0
"""How long a round that could form waits for more members."""

HUB_TIMEOUT: Final = 600.0
"""How long a member waits for a hub it needs and cannot reach."""

STOP_GRACE: Final = 30.0
"""From SIGTERM to SIGKILL when workers are stopped."""

KILL_WAIT: Final = 5.0
"""From SIGKILL to the verdict that a process cannot be killed."""

MONITOR_INTERVAL: Final = 0.1
"""Upper bound between two checks of the workers."""
