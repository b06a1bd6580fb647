"""Timers against workers that hang: the worker sets one, the agent ends the worker when it runs out.

In the worker, under an agent with TORCHELASTIC_ENABLE_FILE_TIMER=1:

    import os
    import agentd.elastic.timer as timer

    timer.configure(timer.FileTimerClient(os.environ["TORCHELASTIC_TIMER_FILE"]))
    with timer.expires(after=60):
        step()
"""

from typing import TYPE_CHECKING

from agentd.elastic.late import found_late

if TYPE_CHECKING:
    from agentd.elastic.timer.api import (
        RequestQueue,
        TimerClient,
        TimerRequest,
        TimerServer,
        configure,
        expires,
    )
    from agentd.elastic.timer.file_based_local_timer import (
        FileTimerClient,
        FileTimerRequest,
        FileTimerServer,
        TimerPipeError,
    )
    from agentd.elastic.timer.local_timer import (
        LocalTimerClient,
        LocalTimerServer,
        MultiprocessingRequestQueue,
    )

__all__ = [
    "FileTimerClient",
    "FileTimerRequest",
    "FileTimerServer",
    "LocalTimerClient",
    "LocalTimerServer",
    "MultiprocessingRequestQueue",
    "RequestQueue",
    "TimerClient",
    "TimerPipeError",
    "TimerRequest",
    "TimerServer",
    "configure",
    "expires",
]

if not TYPE_CHECKING:
    # Workers need no more than the first two.
    _HOMES = ("api", "file_client", "file_based_local_timer", "local_timer")
    __getattr__ = found_late(__name__, __all__, _HOMES)
