"""Every store means the same by its operations, torch's included; helpers on it name who is missing."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, cast

import pytest

from agentd.elastic.rendezvous import RendezvousStoreInfo
from agentd.elastic.utils.distributed import create_c10d_store
from agentd.elastic.utils.store import (
    KeyValueStore,
    StoreError,
    StoreTimeout,
    barrier,
    get_all,
    store_timeout,
    synchronize,
)
from agentd.elastic.utils.stores import InMemoryStore, PrefixStore
from agentd.elastic.utils.tcp_store import TcpStore
from agentd.procs.waiter import Waiter

SHORT = timedelta(milliseconds=200)
TORCHS = [
    pytest.mark.torch,
    pytest.mark.allow_leak(
        "file descriptors", reason="torch's event loop keeps a pipe for the whole process"
    ),
]


def _in_memory(stack: ExitStack) -> KeyValueStore:
    return InMemoryStore()


def _tcp(stack: ExitStack) -> KeyValueStore:
    server = stack.enter_context(TcpStore("localhost", 0, is_master=True))
    return stack.enter_context(TcpStore("localhost", server.port))


def _prefixed(stack: ExitStack) -> KeyValueStore:
    store = InMemoryStore()
    store.set("key", "of somebody else")
    return PrefixStore("ours", store)


class _Lent:
    """An object that pytest, which keeps what fixtures made, cannot keep alive."""

    def __init__(self, target: object) -> None:
        self._target: object = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def give_back(self) -> None:
        self._target = None


def _torchs(stack: ExitStack) -> KeyValueStore:
    lent = _Lent(create_c10d_store(is_server=True, server_addr="localhost", timeout=30))
    stack.callback(lent.give_back)
    return cast("KeyValueStore", lent)


def _prefixed_torchs(stack: ExitStack) -> KeyValueStore:
    return PrefixStore("ours", _torchs(stack))


@pytest.fixture(
    params=[
        _in_memory,
        _tcp,
        _prefixed,
        pytest.param(_torchs, marks=TORCHS),
        pytest.param(_prefixed_torchs, marks=TORCHS),
    ]
)
def store(request: pytest.FixtureRequest) -> Iterator[KeyValueStore]:
    with ExitStack() as stack:
        make: Callable[[ExitStack], KeyValueStore] = request.param
        yield make(stack)


def test_values_are_bytes_however_they_were_given(store: KeyValueStore) -> None:
    store.set("key", "text")
    store.set("raw", b"\x00\xff")
    assert (store.get("key"), store.get("raw")) == (b"text", b"\x00\xff")
    store.multi_set(["a", "b"], ["1", b"2"])
    assert list(store.multi_get(["b", "a"])) == [b"2", b"1"]
    store.append("key", "+more")
    assert store.get("key") == b"text+more"


def test_a_number_is_kept_as_text(store: KeyValueStore) -> None:
    assert (store.add("n", 5), store.add("n", -7), store.add("n", 0)) == (5, -2, -2)
    assert store.get("n") == b"-2"


def test_check_does_not_wait_and_wants_all_keys(store: KeyValueStore) -> None:
    store.set("a", "")
    assert store.check(["a"])
    assert not store.check(["a", "b"])


def test_compare_set_writes_only_over_what_is_expected(store: KeyValueStore) -> None:
    assert store.compare_set("k", "x", "new") == b"x", "nothing is there: nothing is written"
    assert not store.check(["k"])
    assert store.compare_set("k", "", "one") == b"one"
    assert store.compare_set("k", "two", "three") == b"one"
    assert store.compare_set("k", "one", "two") == store.get("k") == b"two"


def test_a_deleted_key_is_gone(store: KeyValueStore) -> None:
    before = store.num_keys()
    store.set("a", "1")
    assert store.num_keys() == before + 1
    assert store.delete_key("a")
    assert not store.delete_key("a")
    assert not store.check(["a"])
    assert store.num_keys() == before


def test_a_get_waits_for_the_key(store: KeyValueStore) -> None:
    if isinstance(store, (InMemoryStore, TcpStore)):  # torch's serves one thread at a time
        writer = threading.Timer(0.1, store.set, ["late", "here"])
        writer.start()
        assert store.get("late") == b"here"
        writer.join()


def test_a_wait_ends_with_its_time_and_the_timeout_comes_back(store: KeyValueStore) -> None:
    with pytest.raises(Exception, match=r"."):
        store.wait(["never"], SHORT)
    usual = store.timeout
    with pytest.raises(StoreTimeout), store_timeout(store, 0.2):
        get_all(store, 1, "nothing", 2)
    assert store.timeout == usual


def test_ranks_give_each_other_their_data(store: KeyValueStore) -> None:
    found: dict[int, list[bytes]] = {}

    def rank(number: int) -> None:
        found[number] = list(synchronize(store, b"of %d" % number, number, 3, "data/", 20))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {rank: [b"of 0", b"of 1", b"of 2"] for rank in range(3)}


def test_a_barrier_names_the_ranks_that_are_missing(store: KeyValueStore) -> None:
    early = threading.Thread(target=_arrive_in_vain, args=(store, 2))
    early.start()
    with Waiter() as waiter, pytest.raises(StoreTimeout, match="missing ranks node-1, node-3") as error:
        barrier(store, 4, "end", 0.3, 0, lambda rank: f"node-{rank}", 1.0, waiter=waiter)
    early.join()
    assert error.value.missing_ranks == (1, 3)
    assert store.check(["end/TRACING_GATE"]), "agents of torch wait for it"


def test_a_barrier_lets_all_through_when_the_last_has_come(store: KeyValueStore) -> None:
    last = threading.Timer(0.05, barrier, [store, 2, "end", 20.0])
    last.start()
    barrier(store, 2, "end", 20.0)
    last.join()


def test_rank_zero_waits_until_all_have_read(store: KeyValueStore) -> None:
    store.multi_set(["p0", "p1"], ["a", "b"])
    with pytest.raises(StoreTimeout, match="p/finished: 1 of 2 members"), store_timeout(store, 0.3):
        get_all(store, 0, "p", 2)


def test_what_makes_no_sense_is_refused_by_name() -> None:
    store = InMemoryStore()
    store.set("word", "x")
    with pytest.raises(StoreError, match="'word' is no number: b'x'"):
        store.add("word", 1)
    with pytest.raises(StoreTimeout, match=r"^k1, k2: not there") as error:
        store.wait(["k1", "word", "k2"], SHORT)
    assert error.value.timeout_s == 0.2
    with pytest.raises(AssertionError, match="give rank as well"):
        barrier(store, 2, "b", 0.1, None, str)


@pytest.mark.torch
@pytest.mark.allow_leak("file descriptors", reason="torch's event loop keeps a pipe for the whole process")
def test_torch_s_own_helpers_work_on_our_stores_and_ours_on_torch_s() -> None:
    torchs = importlib.import_module("torch.distributed.elastic.utils.store")
    info = importlib.import_module("torch.distributed.elastic.rendezvous.api").RendezvousStoreInfo
    with TcpStore("localhost", 0, is_master=True) as ours:
        assert torchs.synchronize(ours, b"data", 0, 1, "key") == [b"data"]
        torchs.barrier(ours, 1, "end")
        told = info.build(0, ours, "here", 29500)
        seen = RendezvousStoreInfo.build(1, ours, None)
        assert (told.master_addr, told.master_port) == (seen.master_addr, seen.master_port)
    held = RendezvousStoreInfo.build(0, create_c10d_store(True, "localhost", timeout=20), "here")
    assert held.master_addr == "here"


def _arrive_in_vain(store: KeyValueStore, rank: int) -> None:
    with pytest.raises(StoreTimeout):
        barrier(store, 4, "end", 0.3, rank)
