"""What is alive, which port is meant, and which protocols there are."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic.agent.server.health.http import HttpHealthCheckServer
from agentd.elastic.agent.server.health_check_server import (
    PORT_VARIABLE,
    PROTOCOL_VARIABLE,
    HealthCheckPortError,
    HealthCheckProtocolError,
    HealthCheckServer,
    LivenessJudge,
    create_healthcheck_server,
    port_from_env,
)
from agentd.elastic.multiprocessing import SignalException

START = 1_700_000_000.0


class Progress:
    """A callback whose answer a test sets."""

    def __init__(self, value: float = START) -> None:
        self.value = value

    def __call__(self) -> float:
        return self.value


@pytest.mark.parametrize(("age", "alive"), [(0, True), (59.9, True), (60, True), (60.1, False), (1e9, False)])
def test_alive_is_progress_no_older_than_the_timeout(age: float, alive: bool) -> None:
    look = LivenessJudge(Progress(START), 60).look(START + age, 0.0)
    assert look.alive is alive
    assert look.age == pytest.approx(age, abs=1e-3)


def test_the_text_tells_age_and_limit() -> None:
    judge = LivenessJudge(Progress(START), 60)
    assert judge.look(START + 3.2, 0).text == "alive: the last progress is 3.2 s old, the limit 60 s"
    assert judge.look(START + 75, 71.8).text == "not alive: the last progress is 75.0 s old, the limit 60 s"


def test_a_clock_set_back_does_not_kill_and_does_not_hide_a_stuck_agent() -> None:
    judge = LivenessJudge(Progress(START), 60)
    assert judge.look(START + 1, 0).alive
    assert judge.look(START - 3600, 30).alive
    assert not judge.look(START - 3540, 90).alive


def test_a_clock_set_ahead_does_not_kill_an_agent_that_was_seen_alive() -> None:
    progress = Progress(START)
    judge = LivenessJudge(progress, 60)
    assert judge.look(START, 0).alive
    assert judge.look(START + 3600, 10).alive
    progress.value = START + 5  # made before the clock was set
    assert judge.look(START + 3610, 20).age == 20


def test_progress_from_the_future_is_fresh() -> None:
    look = LivenessJudge(Progress(START + 500), 60).look(START, 0)
    assert (look.alive, look.age) == (True, 0)


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans(), st.floats(-7200, 7200)), max_size=30))
def test_the_age_grows_with_true_time_and_only_progress_lessens_it(
    steps: list[tuple[float, bool, float]],
) -> None:
    """Whatever is done to the clock between two looks."""
    monotonic, clock = 0.0, START
    progress = Progress(START)
    judge = LivenessJudge(progress, 60)
    before = judge.look(clock, monotonic).age
    for gap, progresses, jump in steps:
        monotonic += gap
        clock += gap
        if progresses:
            progress.value = max(progress.value + 0.001, clock)
        clock += jump
        age = judge.look(clock, monotonic).age
        assert age is not None
        assert before is not None
        if progresses:
            assert 0 <= age <= before + gap + 1e-6
        else:
            assert age == pytest.approx(before + gap)
        before = age


def raising(error: BaseException) -> Callable[[], float]:
    def callback() -> float:
        raise error

    return callback


def test_a_callback_that_raises_is_not_alive_and_its_words_go_to_the_log_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    judge = LivenessJudge(raising(ValueError("a secret")), 60)
    for _ in range(3):
        look = judge.look(START, 0)
        assert (look.alive, look.age, look.text) == (False, None, "not alive: the callback raised ValueError")
    assert [record.getMessage() for record in caplog.records] == [
        "health check: the callback raised ValueError: ValueError('a secret')"
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_callback_that_answers_no_time_is_not_alive(value: float) -> None:
    look = LivenessJudge(Progress(value), 60).look(START, 0)
    assert (look.alive, look.age) == (False, None)
    assert "the callback answered" in look.text


def test_a_callback_that_recovers_is_alive_again() -> None:
    progress = Progress(float("nan"))
    judge = LivenessJudge(progress, 60)
    assert not judge.look(START, 0).alive
    progress.value = START
    assert judge.look(START, 1).alive


def test_a_signal_that_arrives_in_the_callback_is_not_swallowed() -> None:
    judge = LivenessJudge(raising(SignalException("stop", signal.SIGTERM)), 60)
    with pytest.raises(SignalException):
        judge.look(START, 0)


# --- ports


@pytest.mark.parametrize(
    ("text", "port"), [(None, None), ("", None), ("  ", None), ("8080", 8080), (" 8080 ", 8080), ("0", 0)]
)
def test_the_environment_names_the_port(text: str | None, port: int | None) -> None:
    assert port_from_env({} if text is None else {PORT_VARIABLE: text}) == port


@pytest.mark.parametrize(
    ("text", "cause"),
    [("http", "not a number"), ("80.5", "not a number"), ("-1", "65535"), ("65536", "65535")],
)
def test_a_bad_port_is_named_with_its_cause_and_the_next_step(text: str, cause: str) -> None:
    with pytest.raises(HealthCheckPortError) as caught:
        port_from_env({PORT_VARIABLE: text})
    assert caught.value.port == text
    assert cause in caught.value.cause
    assert all(part in str(caught.value) for part in (repr(text), cause, "unset it to run without"))


# --- protocols


def test_http_is_what_one_gets_without_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROTOCOL_VARIABLE, raising=False)
    assert isinstance(create_healthcheck_server(time.time, 0, 60), HttpHealthCheckServer)
    monkeypatch.setenv(PROTOCOL_VARIABLE, "")
    assert isinstance(create_healthcheck_server(time.time, 0, 60), HttpHealthCheckServer)


def test_the_argument_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROTOCOL_VARIABLE, "carrier-pigeon")
    assert isinstance(create_healthcheck_server(time.time, 0, 60, protocol="HTTP"), HttpHealthCheckServer)


def test_an_unknown_protocol_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROTOCOL_VARIABLE, "carrier-pigeon")
    with pytest.raises(HealthCheckProtocolError, match=r"'carrier-pigeon' is not installed.*http") as caught:
        create_healthcheck_server(time.time, 0, 60)
    assert "http" in caught.value.known


def test_a_protocol_that_cannot_be_loaded_is_named_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("pigeon", "no_such_module_anywhere:Server", "agentd.health_check_servers")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: EntryPoints([entry]))
    with pytest.raises(HealthCheckProtocolError, match="no_such_module_anywhere") as caught:
        create_healthcheck_server(time.time, 0, 60, protocol="pigeon")
    assert caught.value.known == ("http", "pigeon")


# --- the class to replace


def test_the_interface_opens_no_port_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    callback = Progress()
    server = HealthCheckServer(callback, 8080, 60)
    with caplog.at_level(logging.WARNING):
        server.start()
    server.stop()
    server.stop()
    assert "no health check server was started" in caplog.text
    assert server.alive_callback is callback


def test_a_replacement_needs_start_and_stop_only() -> None:
    """As one written for torch is, down to the private names."""

    class Replacement(HealthCheckServer):
        def start(self) -> None:
            self.told = (self._port, self._timeout, self._alive_callback())

    server = Replacement(Progress(5.0), 8080, 60)
    server.start()
    assert list(server.told) == [8080, 60, 5.0]
    assert not server.liveness().alive
    server.stop()
