"""A moment as people read it in sentences that travel: nodes need not share a time zone."""

from __future__ import annotations


def utc(seconds: float) -> str:
    """Seconds since the epoch as `2026-01-01 12:00:00 UTC`."""
    # Late: hosts are there sooner without it.
    from datetime import datetime, timezone

    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
