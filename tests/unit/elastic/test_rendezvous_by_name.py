"""Parameters, the registry, plugins, and what text means: the parts of a rendezvous that need no network."""

from __future__ import annotations

import gc
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from agentd.elastic.rendezvous import (
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousHandlerRegistry,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)
from agentd.elastic.rendezvous.in_memory import InMemoryRendezvous, InMemoryRendezvousHandler
from agentd.elastic.rendezvous.registry import (
    OWN_GROUP,
    TORCH_GROUP,
    get_rendezvous_handler,
    register_plugins,
)
from agentd.elastic.rendezvous.torch_handlers import as_ours
from agentd.elastic.rendezvous.utils import (
    matches_machine_hostname,
    parse_rendezvous_config,
    parse_rendezvous_endpoint,
)
from agentd.elastic.utils.stores import InMemoryStore


def _params(backend: str = "static", endpoint: str = "h:1", **options: Any) -> RendezvousParameters:
    return RendezvousParameters(backend, endpoint, "run", 1, 2, **options)


def _in_memory_handler(_params: RendezvousParameters) -> RendezvousHandler:
    return InMemoryRendezvous("run", 1).handler()


# --- parameters


@pytest.mark.parametrize(
    ("backend", "least", "most", "problem"),
    [
        ("", 1, 1, "has no name"),
        ("x", 0, 1, "min_nodes must be 1 or more, is 0"),
        ("x", 3, 2, "at least min_nodes, which is 3; is 2"),
    ],
)
def test_senseless_parameters_are_refused(backend: str, least: int, most: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RendezvousParameters(backend, "", "", least, most)


def test_options_are_read_as_what_they_mean() -> None:
    params = _params(a="YES", b=0, c=True, d="3", e=None, f="f")
    assert [params.get_as_bool(key) for key in "abcef"] == [True, False, True, None, False]
    assert (params.get_as_int("d"), params.get_as_int("e"), params.get_as_int("x", 9)) == (3, None, 9)
    assert (params.get("d"), params.get("x"), params.get("x", 1)) == ("3", None, 1)


@pytest.mark.parametrize("value", ["maybe", 2, 1.0, [], ""])
def test_what_is_neither_true_nor_false_is_an_error_that_names_the_option(value: object) -> None:
    with pytest.raises(ValueError, match="option flag="):
        _params(flag=value).get_as_bool("flag")


@pytest.mark.parametrize("value", ["three", "", [], float("inf")])
def test_what_is_no_number_is_an_error_that_names_the_option(value: object) -> None:
    with pytest.raises(ValueError, match=r"option count=.* whole number"):
        _params(count=value).get_as_int("count")


# --- registry and plugins


@dataclass
class Plugin:
    """An entry point."""

    name: str
    group: str
    load: Callable[[], Any]


def _broken() -> Any:
    raise ImportError("no such module")


def test_a_name_belongs_to_one_creator() -> None:
    registry = RendezvousHandlerRegistry()
    registry.register("mine", _in_memory_handler)
    registry.register("mine", _in_memory_handler)
    with pytest.raises(ValueError, match=r"'mine' is .*_in_memory_handler.* already"):
        registry.register("mine", get_rendezvous_handler)
    with pytest.raises(ValueError, match="has no name"):
        registry.register("", _in_memory_handler)


def test_a_handler_must_be_of_the_backend_that_was_asked_for() -> None:
    registry = RendezvousHandlerRegistry()
    registry.register("other", _in_memory_handler)
    with pytest.raises(RuntimeError, match="backend 'other' made a handler of 'in-memory'"):
        registry.create_handler(_params("other"))
    with pytest.raises(ValueError, match="'mine' is unknown; known are: other"):
        registry.create_handler(_params("mine"))


def test_plugins_are_called_by_their_group_s_convention() -> None:
    for group, found in ((TORCH_GROUP, lambda: _in_memory_handler), (OWN_GROUP, _in_memory_handler)):
        registry = RendezvousHandlerRegistry()
        register_plugins(registry, [Plugin("in-memory", group, lambda found=found: found)])  # type: ignore[misc]
        assert registry.create_handler(_params("in-memory")).get_backend() == "in-memory"


def test_a_broken_plugin_is_a_warning_that_names_it_and_harms_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = RendezvousHandlerRegistry()
    registry.register("static", _in_memory_handler)
    plugins = [
        Plugin("broken", TORCH_GROUP, _broken),
        Plugin("useless", TORCH_GROUP, lambda: lambda: None),
        Plugin("static", OWN_GROUP, lambda: _in_memory_handler),
        Plugin("in-memory", OWN_GROUP, lambda: _in_memory_handler),
    ]
    with caplog.at_level(logging.WARNING):
        register_plugins(registry, plugins)
    told = [record.getMessage() for record in caplog.records]
    assert [("broken" in told[0], "no such module" in told[0]), "useless" in told[1]] == [(True, True), True]
    assert "'static' of the entry point group agentd.rendezvous_handlers" in told[2]
    assert registry.backends == ("in-memory", "static")


def test_an_own_plugin_is_loaded_when_it_is_used_and_says_if_it_cannot() -> None:
    registry = RendezvousHandlerRegistry()
    register_plugins(registry, [Plugin("later", OWN_GROUP, _broken)])
    with pytest.raises(RendezvousError, match=r"plugin 'later' .* cannot be loaded: ImportError"):
        registry.create_handler(_params("later"))


def test_built_in_backends_are_found_by_name() -> None:
    first = get_rendezvous_handler(RendezvousParameters("in-memory", "", "shared", 1, 2))
    second = get_rendezvous_handler(RendezvousParameters("in-memory", "", "shared", 1, 2))
    assert isinstance(first, InMemoryRendezvousHandler)
    assert isinstance(second, InMemoryRendezvousHandler)
    assert first._meet is second._meet, "agents of one run meet"
    with pytest.raises(ValueError, match=r"known are: .*c10d, etcd, etcd-v2, in-memory, static"):
        get_rendezvous_handler(_params("nowhere"))


def test_a_run_id_is_free_again_once_all_handlers_of_its_run_are_shut_down() -> None:
    first, second = (_in_memory(RendezvousParameters("in-memory", "", "again", 2, 2)) for _ in range(2))
    first.shutdown()
    assert _in_memory(RendezvousParameters("in-memory", "", "again", 2, 2))._meet is second._meet
    lonely = _in_memory(RendezvousParameters("in-memory", "", "lonely", 2, 2, join_timeout=5))
    lonely.shutdown()
    alone = _in_memory(RendezvousParameters("in-memory", "", "lonely", 1, 1))
    assert alone.next_rendezvous().world_size == 1, "two were wanted in the run before"
    assert alone.shutdown()
    assert not lonely.is_closed(), "a handler that is shut down may still be looked at"


def _in_memory(params: RendezvousParameters) -> InMemoryRendezvousHandler:
    handler = get_rendezvous_handler(params)
    assert isinstance(handler, InMemoryRendezvousHandler)
    return handler


@pytest.mark.parametrize(
    ("endpoint", "options", "problem"),
    [
        ("h:1", {}, "needs the option rank"),
        ("h:1", {"rank": 2}, "rank must be between 0 and 1, is 2"),
        ("h:1", {"rank": 0, "timeout": 0}, "timeout must be at least 1 second, is 0"),
        ("h:1", {"rank": 0, "timeout": "-5"}, "timeout must be at least 1 second, is -5"),
        ("h:1", {"rank": 0, "timeout": 0.5}, r"timeout must be at least 1 second, is 0\.5"),
        ("h", {"rank": 0}, "needs an endpoint host:port, has 'h'"),
        (" ", {"rank": 0}, "needs an endpoint host:port, has ''"),
    ],
)
def test_the_static_rendezvous_says_what_it_needs(
    endpoint: str, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        get_rendezvous_handler(_params("static", endpoint, **options))


def test_torch_s_backends_without_torch_tell_the_next_step() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from agentd.elastic.rendezvous import RendezvousParameters\n"
        "from agentd.elastic.rendezvous.registry import get_rendezvous_handler\n"
        "from agentd.elastic.utils.distributed import create_c10d_store\n"
        "from agentd.elastic.rendezvous.torch_handlers import TorchMissing\n"
        "for use in (lambda: get_rendezvous_handler(RendezvousParameters('c10d', 'h', 'r', 1, 1)),\n"
        "            lambda: create_c10d_store(True, 'localhost')):\n"
        "    try: use()\n"
        "    except TorchMissing as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("pip install 'agentd-elastic[torch]'" in line for line in lines)
    assert lines[0].startswith("the rendezvous backend 'c10d' is torch's")


# --- torch's errors


def _torch_error(name: str, module: str = "torch.distributed.elastic.rendezvous.api") -> Exception:
    kind = type(name, (Exception,), {"__module__": module})
    error = kind("the text")
    assert isinstance(error, Exception)
    return error


def test_errors_of_torch_s_rendezvous_pass_as_ours() -> None:
    for name, ours in (
        ("RendezvousGracefulExitError", RendezvousGracefulExitError),
        ("RendezvousTimeoutError", RendezvousTimeoutError),
    ):
        with pytest.raises(ours, match="the text"), as_ours():
            raise _torch_error(name)


def test_other_errors_pass_as_they_are() -> None:
    for error in (_torch_error("RendezvousTimeoutError", "elsewhere"), ValueError("x"), RendezvousError("y")):
        with pytest.raises(type(error)) as caught, as_ours():
            raise error
        assert caught.value is error


# --- text


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [
        (None, "localhost", 7),
        ("  ", "localhost", 7),
        ("node", "node", 7),
        (" node:80 ", "node", 80),
        ("10.0.0.1:0", "10.0.0.1", 0),
        ("[::1]:65535", "::1", 65535),
        ("[::1]", "::1", 7),
        ("fe80::1", "fe80::1", 7),
    ],
)
def test_endpoints(endpoint: str | None, host: str, port: int) -> None:
    assert parse_rendezvous_endpoint(endpoint, 7) == (host, port)


@pytest.mark.parametrize("endpoint", ["n:65536", "n:", "n:x", "n:-1", "a b:1", ":1", "[]:1", "n:1_0", "n/x"])
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="rendezvous endpoint"):
        parse_rendezvous_endpoint(endpoint, 7)


def test_options_as_text() -> None:
    assert parse_rendezvous_config(" a=1 , b = x=y ") == {"a": "1", "b": "x=y"}
    assert parse_rendezvous_config(" ") == {}
    for text in ("a", "a=", "=1", "a=1,,b=2", ","):
        with pytest.raises(ValueError, match="key=value"):
            parse_rendezvous_config(text)


def test_hosts_that_mean_this_machine() -> None:
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", socket.gethostname()):
        assert matches_machine_hostname(host), host
    for host in ("192.0.2.77", "no-such-host.invalid"):
        assert not matches_machine_hostname(host), host


# --- where the workers meet


def test_rank_zero_tells_all_where_the_workers_meet() -> None:
    store = InMemoryStore()
    told = RendezvousStoreInfo.build(0, store, "10.1.2.3", 29500)
    assert told == RendezvousStoreInfo.build(1, store, "elsewhere") == RendezvousStoreInfo("10.1.2.3", 29500)
    assert store.multi_get(["MASTER_ADDR", "MASTER_PORT"]) == [b"10.1.2.3", b"29500"]


def test_a_found_port_is_nobody_else_s_until_the_store_has_gone() -> None:
    store = InMemoryStore()
    first = RendezvousStoreInfo.build(0, store, None)
    second = RendezvousStoreInfo.build(0, store, None)
    assert first.master_addr
    assert not _is_held(first.master_port), "the next one takes its place"
    assert _is_held(second.master_port)
    with socket.socket() as worker:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        worker.bind(("127.0.0.1", second.master_port))
        worker.listen()
    del store
    gc.collect()
    assert not _is_held(second.master_port)


def _is_held(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
