"""What events and metrics go to is never a reason for a run to fail: its errors are logged once."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

_complained: set[tuple[str, type[Exception]]] = set()


def tolerate(sink: object, error: Exception) -> None:
    """Log that `sink` failed, at its first error of this type; a signal that arrived in it goes on its way.

    For the `except Exception` of whoever feeds a sink.
    """
    if _is_a_signal(error):
        raise error
    name = sink if isinstance(sink, str) else type(sink).__qualname__
    key = (name, type(error))
    if key not in _complained:
        _complained.add(key)
        log.warning(
            "%s failed; what it was given is lost, and more such errors are not logged: %r", name, error
        )


def _is_a_signal(error: Exception) -> bool:
    """By name: torch's exception and ours are both raised by signal handlers, wherever these interrupt."""
    return any(cls.__name__ == "SignalException" for cls in type(error).__mro__)
