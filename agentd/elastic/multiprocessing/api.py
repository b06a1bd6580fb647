"""Groups of worker processes under torch's names."""

from __future__ import annotations

import signal


class SignalException(Exception):
    """This process got a signal that stops its agent."""

    def __init__(self, msg: str, sigval: signal.Signals) -> None:
        super().__init__(msg)
        self.sigval = sigval
