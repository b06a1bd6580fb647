"""torch's own rendezvous handlers, for our agents: made by torch, used as they are.

Their errors have classes of their own. `as_ours` lets them pass as ours, which the agent knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

from agentd.elastic.rendezvous import api
from agentd.elastic.rendezvous.api import RendezvousError, RendezvousHandler, RendezvousParameters

__all__ = ["TorchMissing", "as_ours", "create_rdzv_handler"]


class TorchMissing(RendezvousError):
    """What was asked for is a part of torch, and torch cannot be imported here."""

    def __init__(self, what: str, cause: ImportError) -> None:
        super().__init__(
            f"{what} is torch's, which cannot be imported here ({cause}). Install it with "
            "pip install 'agentd-elastic[torch]', or use what needs no torch: "
            "the rendezvous backends static, in-memory and agentd, the store TcpStore"
        )
        self.what = what


def create_rdzv_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Let torch make its handler for a backend of its own: c10d, etcd, etcd-v2.

    Raises `TorchMissing` without torch; errors of torch's rendezvous as ours.
    """
    try:
        from torch.distributed.elastic import rendezvous as torchs
        from torch.distributed.elastic.rendezvous import registry
    except ImportError as error:
        raise TorchMissing(f"the rendezvous backend {params.backend!r}", error) from error
    theirs = torchs.RendezvousParameters(
        backend=params.backend,
        endpoint=params.endpoint,
        run_id=params.run_id,
        min_nodes=params.min_nodes,
        max_nodes=params.max_nodes,
        local_addr=params.local_addr,
        **params.config,
    )
    with as_ours():
        # It has the interface and not the base class.
        return cast("RendezvousHandler", registry.get_rendezvous_handler(theirs))


@contextlib.contextmanager
def as_ours() -> Iterator[None]:
    """Raise errors of torch's rendezvous as those of the same name here. All others pass."""
    try:
        yield
    except Exception as error:
        twin = _twin_of(error)
        if twin is None:
            raise
        raise twin(*error.args) from error


def _twin_of(error: Exception) -> type[RendezvousError] | None:
    """The class here for one of torch, known by its name: torch itself may not be imported for this."""
    if isinstance(error, RendezvousError):
        return None
    for kind in type(error).__mro__:
        if kind.__module__.startswith("torch.distributed.elastic.rendezvous"):
            twin = getattr(api, kind.__name__, None)
            if isinstance(twin, type) and issubclass(twin, RendezvousError):
                return twin
    return None
