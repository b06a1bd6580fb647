"""From the name of a rendezvous backend to its handler: ours, torch's, and those of plugins.

Nothing is imported before it is asked for: a backend costs nothing until its name is used.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

from agentd.elastic.rendezvous.api import (
    RendezvousError,
    RendezvousHandler,
    RendezvousHandlerCreator,
    RendezvousHandlerRegistry,
    RendezvousParameters,
    rendezvous_handler_registry,
)

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["get_rendezvous_handler", "register_plugins"]

TORCH_GROUP = "torchrun.handlers"
"""torch's entry points: each is called without arguments and answers the creator."""
OWN_GROUP = "agentd.rendezvous_handlers"
"""Our entry points: each is the creator itself."""

_log = logging.getLogger(__name__)
_filling = threading.Lock()
_filled = False  # guarded by _filling


class Loadable(Protocol):
    """What `register_plugins` needs of an entry point."""

    @property
    def name(self) -> str:
        """The backend's name."""

    @property
    def group(self) -> str:
        """One of the two groups."""

    def load(self) -> Any:
        """Import what the entry point names."""


def get_rendezvous_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Make the handler of `params.backend`.

    Known are `static` and `in-memory`, torch's `c10d`, `etcd` and `etcd-v2` where torch is installed, what
    plugins offer, and what was registered in `rendezvous_handler_registry`. ValueError for other names.
    """
    global _filled
    with _filling:
        if not _filled:
            _register_built_in(rendezvous_handler_registry)
            register_plugins(rendezvous_handler_registry, _entry_points())
            _filled = True
    return rendezvous_handler_registry.create_handler(params)


def register_plugins(registry: RendezvousHandlerRegistry, entry_points: Iterable[Loadable]) -> None:
    """Register what entry points offer. One that cannot be used is a warning that names it.

    torch's convention wants its plugins loaded and called at once. Those of `agentd.rendezvous_handlers` are
    loaded when a handler is made, so that unused ones cost nothing; a failure then is a `RendezvousError`.
    """
    for entry in entry_points:
        try:
            creator = entry.load()() if entry.group == TORCH_GROUP else _LateCreator(entry)
            if not callable(creator):
                raise TypeError(f"it answered {creator!r}, which makes no handler")
            registry.register(entry.name, creator)
        except Exception as error:  # noqa: BLE001  a plugin may fail in any way; the other backends must not
            _log.warning(
                "the rendezvous plugin %r of the entry point group %s cannot be used: %s: %s",
                entry.name,
                entry.group,
                type(error).__name__,
                error,
            )


class _LateCreator:
    """A creator that is imported when it is called."""

    def __init__(self, entry: Loadable) -> None:
        self._entry = entry

    def __call__(self, params: RendezvousParameters) -> RendezvousHandler:
        try:
            creator = cast("RendezvousHandlerCreator", self._entry.load())
        except Exception as error:
            raise RendezvousError(f"{self!r} cannot be loaded: {type(error).__name__}: {error}") from error
        return creator(params)

    def __repr__(self) -> str:
        return f"the rendezvous plugin {self._entry.name!r} of the entry point group {self._entry.group}"


def _entry_points() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return [entry for group in (OWN_GROUP, TORCH_GROUP) for entry in entry_points(group=group)]


def _register_built_in(registry: RendezvousHandlerRegistry) -> None:
    registry.register("static", _static)
    registry.register("in-memory", _in_memory)
    for backend in ("c10d", "etcd", "etcd-v2"):
        registry.register(backend, _torchs)


def _static(params: RendezvousParameters) -> RendezvousHandler:
    from agentd.elastic.rendezvous.static_tcp_rendezvous import create_rdzv_handler

    return create_rdzv_handler(params)


def _in_memory(params: RendezvousParameters) -> RendezvousHandler:
    from agentd.elastic.rendezvous.in_memory import create_rdzv_handler

    return create_rdzv_handler(params)


def _torchs(params: RendezvousParameters) -> RendezvousHandler:
    from agentd.elastic.rendezvous.torch_handlers import create_rdzv_handler

    return create_rdzv_handler(params)
