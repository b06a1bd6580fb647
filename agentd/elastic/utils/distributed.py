"""Free ports, and torch's store made by torch, under torch's names."""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, cast

from agentd.elastic.utils.api import get_socket_with_port

if TYPE_CHECKING:
    from agentd.elastic.utils.store import KeyValueStore

__all__ = ["create_c10d_store", "get_free_port", "get_socket_with_port"]


def get_free_port() -> int:
    """A port that was free a moment ago. Another program may take it first.

    `agentd.elastic.utils.ports.HeldPort` keeps one free until it is used.
    """
    with contextlib.closing(get_socket_with_port()) as found:
        return int(found.getsockname()[1])


def create_c10d_store(
    is_server: bool,
    server_addr: str,
    server_port: int = -1,
    world_size: int = 1,
    timeout: float = 600,
    wait_for_workers: bool = True,
    retries: int = 3,
    use_libuv: bool | None = None,
) -> KeyValueStore:
    """torch's TCPStore, connected, with a server behind it if `is_server`.

    With port -1, for a world of one, the server picks a free one itself: nothing can take it first, so that
    `retries` is not needed. `use_libuv` is ignored, as in torch: USE_LIBUV=0 turns it off. `timeout` is in
    seconds. Raises `TorchMissing` without torch; `agentd.elastic.utils.tcp_store.TcpStore` needs none.
    ValueError for port -1 where it makes no sense.
    """
    if server_port == -1 and (world_size > 1 or not is_server):
        raise ValueError("server_port is missing: others cannot know the port that a server picks itself")
    try:
        distributed = import_module("torch.distributed")
    except ImportError as error:
        from agentd.elastic.rendezvous.torch_handlers import TorchMissing

        raise TorchMissing("the c10d store", error) from error
    store = distributed.TCPStore(
        host_name=server_addr,
        port=max(server_port, 0),
        world_size=world_size,
        is_master=is_server,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=wait_for_workers,
        use_libuv=os.environ.get("USE_LIBUV", "1") == "1",
    )
    return cast("KeyValueStore", store)
