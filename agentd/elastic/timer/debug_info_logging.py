"""A place to hook into what is known when timers run out."""

from __future__ import annotations

import logging

__all__ = ["log_debug_info_for_expired_timers"]

log = logging.getLogger(__name__)


def log_debug_info_for_expired_timers(run_id: str, expired_timers: dict[int, list[str]]) -> None:
    """Log the expired timers: by process, each as the JSON of its request. Nothing if there are none."""
    if expired_timers:
        log.info("timers of run %s expired: %s", run_id, expired_timers)
