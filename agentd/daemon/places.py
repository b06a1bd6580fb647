"""What belongs to one agentd at a time: its state directory, its sockets, its ports."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from agentd.api.targets import Target, default_socket
from agentd.config import Config
from agentd.daemon.exits import StateDirUnusable
from agentd.daemon.listen import claim_port, claim_socket, plan, resolve_host
from agentd.daemon.locks import FILE_NAME, FileLock, folder_locked
from agentd.procs.node import listener_pid
from agentd.procs.resources import SHORTAGES
from agentd.quickdata import dataclass


@dataclass(frozen=True, slots=True)
class Places:
    """Held by this process until the block that made it ends."""

    state_dir: str
    endpoints: tuple[Target, ...]
    warnings: tuple[str, ...]


@contextlib.contextmanager
def claimed(config: Config) -> Iterator[Places]:
    """Take everything the configuration names, or say who has it. Raises `StartFailed`."""
    listening = plan(config.listen, insecure=config.insecure, resolve=resolve_host)
    private = str(default_socket(os.environ, os.getuid()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(state_dir_locked(config.state_dir))
        for endpoint in listening.endpoints:
            if endpoint.is_unix:
                lock = claim_socket(endpoint, private=str(endpoint) == private)
                stack.callback(lock.release)
                stack.callback(Path(endpoint.path).unlink, missing_ok=True)
            else:
                claim_port(endpoint, listener_pid)
        yield Places(config.state_dir, listening.endpoints, listening.warnings)


@contextlib.contextmanager
def state_dir_locked(path: str) -> Iterator[None]:
    """Own a state directory, made if it is not there. Raises `StartFailed`."""
    what = f"state directory {path}"
    with contextlib.ExitStack() as stack:
        try:
            Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
            # Also that of the folder itself: where the disk takes no file it is all there is.
            folder_is_ours = stack.enter_context(folder_locked(path, what))
            stack.enter_context(_file_locked(path, what, needed=not folder_is_ours))
        except OSError as error:
            raise StateDirUnusable(path, os.strerror(error.errno or 0).lower()) from None
        yield


@contextlib.contextmanager
def _file_locked(folder: str, what: str, *, needed: bool) -> Iterator[None]:
    """The lock that names its holder. Not `needed`: where the disk takes no file, it may be missing."""
    try:
        lock = FileLock.acquire(os.path.join(folder, FILE_NAME), what)
    except OSError as error:
        if needed or error.errno not in SHORTAGES:
            raise
        yield
        return
    try:
        yield
    finally:
        lock.release()
