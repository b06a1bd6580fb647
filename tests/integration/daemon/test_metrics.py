"""What Prometheus is told of a node, and that nothing else is to be had there."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentd.core.conditions import OF_RUNS, Condition
from agentd.daemon.exits import ExitCode
from tests.integration.daemon.rig import Daemon, a_run, calling, refused, running, script
from tests.support.waiting import wait_until

PATIENCE_S = 20.0


@contextlib.contextmanager
def told(folder: Path) -> Iterator[tuple[Daemon, str]]:
    """An agentd and where its metrics are."""
    with running(folder / "n", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0") as daemon:
        yield daemon, daemon.event("serving metrics")["url"]


def gauges(url: str) -> dict[str, float]:
    """The value of each gauge, by its name and its last label."""
    with urlopen(url, timeout=PATIENCE_S) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    assert all(family.type == "gauge" and family.documentation for family in families)
    return {
        " ".join((sample.name, *list(sample.labels.values())[-1:])): sample.value
        for family in families
        for sample in family.samples
    }


def test_conditions_are_gauges_that_rise_and_fall_with_them(folder: Path) -> None:
    with told(folder) as (daemon, url):
        well = gauges(url)
        names = {f"agentd_condition {condition}" for condition in Condition if condition not in OF_RUNS}
        assert {name: well[name] for name in names} == dict.fromkeys(names, 0.0)
        assert (well["agentd_accepting"], well["agentd_drained"]) == (1.0, 0.0)
        with (
            contextlib.closing(
                sqlite3.connect(daemon.state_dir / "agentd.db", isolation_level=None)
            ) as holder,
            calling(daemon.targets[0]) as agent,
        ):
            agent.Run(a_run("r", script(folder, "import time; time.sleep(600)")), timeout=PATIENCE_S)
            wait_until(lambda: gauges(url).get("agentd_worker_groups running") == 1.0, PATIENCE_S)
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(Exception, match="journal"):
                agent.Run(a_run("s", script(folder, "pass")), timeout=PATIENCE_S)
            assert gauges(url)["agentd_condition JOURNAL_BEHIND"] == 1.0
            assert gauges(url)["agentd_accepting"] == 0.0
            holder.execute("ROLLBACK")
            wait_until(lambda: gauges(url)["agentd_condition JOURNAL_BEHIND"] == 0.0, PATIENCE_S)


def test_there_is_nothing_else_and_nonsense_costs_nobody_else(folder: Path) -> None:
    with told(folder) as (_, url):
        place = ("127.0.0.1", urlsplit(url).port or 0)
        silent = [socket.create_connection(place, PATIENCE_S) for _ in range(8)]
        for method, path, status in (
            ("GET", "/", 404),
            ("POST", "/metrics", 405),
            ("HEAD", "/metrics?x=1", 200),
        ):
            connection = http.client.HTTPConnection(*place, timeout=PATIENCE_S)
            connection.request(method, path)
            assert connection.getresponse().status == status
            connection.close()
        for nonsense in (b"\xff\r\n\r\n", b"GET\r\n\r\n", b"x" * 100_000):
            with socket.create_connection(place, PATIENCE_S) as talker, contextlib.suppress(ConnectionError):
                talker.sendall(nonsense)
                assert talker.recv(100) == b""
        assert gauges(url)["agentd_accepting"] == 1.0
        for each in silent:
            with each:
                assert each.recv(100) == b"", "it said nothing for long"


def test_an_address_that_is_taken_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = ("--listen", "127.0.0.1:0", "--metrics-listen", address)
        code, said = refused(folder / "n", *flags)
    assert code == ExitCode.ADDRESS_UNUSABLE
    assert address in said
