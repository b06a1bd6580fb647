"""A logger with the level of the environment, under torch's name."""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["get_logger"]


def get_logger(name: str | None = None) -> logging.Logger:
    """A logger of that name, by default the calling module's, at the level LOGLEVEL (WARNING if unset).

    A LOGLEVEL that is none is told of in a warning, and is no reason to fail.
    """
    logger = logging.getLogger(name or sys._getframe(1).f_globals.get("__name__"))
    level = os.environ.get("LOGLEVEL", "WARNING").strip()
    try:
        logger.setLevel(int(level) if level.isdigit() else level.upper())
    except ValueError:
        logger.setLevel(logging.WARNING)
        logger.warning("LOGLEVEL=%s names no level: use DEBUG, INFO, WARNING or ERROR", level)
    return logger
