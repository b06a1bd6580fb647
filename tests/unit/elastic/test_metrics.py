"""Metrics reach the handler of their group under torch's names, cost nothing unheard, and harm nobody."""

from __future__ import annotations

import signal
import timeit
from collections.abc import Callable
from typing import Any

import pytest

from agentd.elastic import metrics
from agentd.elastic.metrics import MetricData, MetricHandler, api
from agentd.elastic.multiprocessing import SignalException


class Kept(MetricHandler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.data: list[MetricData] = []

    def emit(self, metric_data: MetricData) -> None:
        self.data.append(metric_data)

    @property
    def values(self) -> list[tuple[str, float]]:
        return [(each.name, each.value) for each in self.data if not each.name.endswith(".duration.ms")]

    @property
    def durations(self) -> dict[str, float]:
        return {each.name: each.value for each in self.data if each.name.endswith(".duration.ms")}


class Broken(MetricHandler):
    """Raises whatever it is told to."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def emit(self, metric_data: MetricData) -> None:
        raise self.error


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing configured, before and after."""
    monkeypatch.setattr(api, "_handlers", {})
    monkeypatch.setattr(api, "_default_handler", metrics.NullMetricHandler())


@pytest.fixture
def kept() -> Kept:
    handler = Kept()
    metrics.configure(handler)
    return handler


class Oven:
    @metrics.prof
    def bake(self, minutes: int) -> str:
        """Bakes."""
        return f"baked {minutes}"

    @metrics.prof(group="kitchen")
    def burn(self, error: BaseException) -> None:
        raise error


@metrics.prof
def knead(dough: int) -> int:
    return dough + 1


def test_a_method_is_measured_under_its_class_and_name(kept: Kept) -> None:
    assert Oven().bake(minutes=3) == "baked 3"
    assert kept.values == [("Oven.bake.success", 1)]
    assert list(kept.durations) == ["Oven.bake.duration.ms"]
    assert {each.group_name for each in kept.data} == {"torchelastic"}


def test_a_function_is_measured_under_its_module_s_last_name(kept: Kept) -> None:
    assert knead(1) == 2
    assert kept.values == [(f"{__name__.rpartition('.')[2]}.knead.success", 1)]


def test_a_measured_function_keeps_its_name_and_docstring() -> None:
    assert Oven.bake.__name__ == "bake"
    assert Oven.bake.__doc__ == "Bakes."


@pytest.mark.parametrize("error", [ValueError("hot"), KeyboardInterrupt(), SystemExit(3)])
def test_whatever_is_raised_counts_as_a_failure_and_goes_on(kept: Kept, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        Oven().burn(error)
    assert raised.value is error
    assert kept.values == [("Oven.burn.failure", 1)]
    assert list(kept.durations) == ["Oven.burn.duration.ms"]
    assert {each.group_name for each in kept.data} == {"kitchen"}


def test_each_group_goes_to_its_own_handler_and_the_rest_to_the_default() -> None:
    mine, default = Kept(), Kept()
    metrics.configure(mine, "mine")
    metrics.configure(default)
    metrics.put_metric("a", 1, "mine")
    metrics.put_metric("b", 2)
    metrics.getStream("other").add_value("c", 3)
    assert mine.values == [("a", 1)]
    assert [(each.group_name, each.name) for each in default.data] == [("torchelastic", "b"), ("other", "c")]


def test_nothing_listens_until_a_handler_is_configured_for_the_group() -> None:
    assert not metrics.is_listening()
    metrics.configure(Kept(), "mine")
    assert metrics.is_listening("mine")
    assert not metrics.is_listening("torchelastic")


def test_the_console_handler_prints_group_name_and_value(capsys: pytest.CaptureFixture[str]) -> None:
    metrics.ConsoleMetricHandler().emit(MetricData(12.5, "group", "name", 7))
    assert capsys.readouterr().out == "[12.5][group]: name=7\n"


def test_a_handler_that_raises_is_told_once_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class OnlyHere(Broken):
        """A name of its own: complaints are counted by it."""

    metrics.configure(OnlyHere(RuntimeError("no network")))
    assert [knead(1), knead(2)] == [2, 3]
    assert len(caplog.records) == 1
    assert "OnlyHere" in caplog.text
    assert "no network" in caplog.text


def test_a_signal_that_arrives_in_a_handler_is_not_lost() -> None:
    metrics.configure(Broken(SignalException("stop", signal.SIGTERM)))
    with pytest.raises(SignalException):
        metrics.put_metric("a", 1)


def test_the_deprecated_names_warn_and_work(kept: Kept) -> None:
    with pytest.warns(FutureWarning, match="use prof"):
        decorate = metrics.profile("old")
    assert decorate(knead)(1) == 2
    with pytest.warns(FutureWarning, match="use put_metric"):
        metrics.publish_metric("old", "x", 4)
    assert [each[0] for each in kept.values][1:] == ["knead.success", "x"]


def test_parameters_are_kept_and_initializing_does_nothing() -> None:
    assert metrics.MetricsConfig().params == {}
    assert metrics.MetricsConfig({"a": "b"}).params == {"a": "b"}
    metrics.initialize_metrics(metrics.MetricsConfig())
    assert not metrics.is_listening()


def test_elapsed_time_is_whole_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 101.2345)
    assert metrics.get_elapsed_time_ms(100.0) == 1234


def test_a_clock_set_back_gives_no_negative_duration(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 50.0, 40.0, 30.0])
    monkeypatch.setattr("time.time", lambda: next(times))
    knead(1)
    assert min(kept.durations.values()) >= 0


def test_measuring_costs_nearly_nothing_when_nothing_listens() -> None:
    count = 200  # so few that some of the rounds are not interrupted, however busy the machine is
    cost = min(timeit.repeat(lambda: knead(1), number=count, repeat=500)) / count
    assert cost < 2e-6


@pytest.mark.torch
def test_torch_calls_the_same_function_the_same(kept: Kept) -> None:
    import torch.distributed.elastic.metrics.api as torch_metrics

    def plain() -> None: ...

    class Host:
        def method(self) -> None: ...

    names: list[str] = []

    class TorchKept(torch_metrics.MetricHandler):
        def emit(self, metric_data: Any) -> None:
            names.append(metric_data.name)

    torch_metrics.configure(TorchKept())
    try:
        for function in (plain, Host.method, test_measuring_costs_nearly_nothing_when_nothing_listens):
            for prof in (torch_metrics.prof, metrics.prof):
                stand_in = _named_like(function)
                prof(stand_in)()
    finally:
        torch_metrics.configure(torch_metrics.NullMetricHandler())
    assert [each.name for each in kept.data] == names


def _named_like(function: Callable[..., object]) -> Callable[[], None]:
    def stand_in() -> None: ...

    stand_in.__qualname__ = function.__qualname__
    stand_in.__module__ = function.__module__
    return stand_in
