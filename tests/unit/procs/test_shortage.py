"""At the limit of descriptors the living stay alive, and nothing that was begun in vain is left."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentd.procs import identity, procfs, tree
from agentd.procs import spawn as spawning
from agentd.procs.pool import Pool
from agentd.procs.resources import HEADROOM, missing_descriptors
from agentd.procs.spare import Spare
from agentd.procs.spawn import SpawnError, spawn


@contextlib.contextmanager
def at_the_limit(left: int = 0) -> Iterator[None]:
    """This process may open `left` files more."""
    kind = resource.RLIMIT_NOFILE
    before = resource.getrlimit(kind)
    held: list[int] = []
    try:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(kind, (highest + 32, before[1]))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/", os.O_PATH))
        for _ in range(left):
            os.close(held.pop())
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(kind, before)


def test_a_process_at_its_limit_does_not_take_the_living_for_dead() -> None:
    own = identity.identify(os.getpid())
    assert own is not None
    with at_the_limit():
        with pytest.raises(OSError, match="Too many open files"):
            os.open("/", os.O_PATH)
        for _ in range(3):
            assert identity.is_alive(own)
        assert own.pid in {stat.pid for stat in procfs.processes()}
        assert procfs.read_stat(2**22 - 1) is None
        assert tree.find(tree.Marks(token="nobody's")) == []


def test_many_threads_share_the_spare_descriptor() -> None:
    own = identity.identify(os.getpid())
    with at_the_limit(), ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: identity.identify(os.getpid()), range(200)))
    assert found == [own] * 200


def test_who_is_overtaken_to_the_spare_descriptor_gets_it_next() -> None:
    spare = Spare()
    taken: list[int] = []

    def call() -> int:
        if taken:
            os.close(taken[0])
        else:
            taken.append(os.open("/", os.O_PATH))
        fd = os.open("/", os.O_PATH)
        os.close(fd)
        return fd

    with at_the_limit():
        assert spare.lend(call) == taken[0]
    spare.close()


def test_the_limit_is_named_before_it_is_reached() -> None:
    assert missing_descriptors() == ""
    with at_the_limit(HEADROOM - 1):
        assert "files open, its limit" in missing_descriptors()
    with at_the_limit(HEADROOM):
        assert missing_descriptors() == ""


def test_a_child_that_cannot_be_identified_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def fail(pid: int) -> None:
        started.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(spawning, "identify", fail)
    with pytest.raises(SpawnError, match="Too many open files"):
        spawn(["/bin/sleep", "600"], env={})
    assert procfs.read_stat(started[0]) is None


def test_a_pool_goes_on_with_the_threads_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(4, "test")
    try:

        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        futures = [pool.submit(int, str(number)) for number in range(20)]
        assert [future.result(10) for future in futures] == list(range(20))
    finally:
        monkeypatch.undo()
        pool.shutdown()
