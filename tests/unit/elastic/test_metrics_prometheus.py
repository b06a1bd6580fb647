"""torch's metrics as Prometheus reads them: by name and label, from the text an exporter shows."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from agentd.elastic.metrics import MetricData, MetricHandler, api, configure, put_metric
from agentd.elastic.metrics.prometheus import PrometheusMetricHandler


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> PrometheusMetricHandler:
    monkeypatch.setattr(api, "_handlers", {})
    made = PrometheusMetricHandler(CollectorRegistry())
    configure(made, "torchelastic")
    return made


def shown(handler: PrometheusMetricHandler) -> set[str]:
    """The samples, less those about the time of their making."""
    lines = generate_latest(handler.registry).decode().splitlines()
    return {line for line in lines if not line.startswith("#") and "_created{" not in line}


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("A.b.success", 1, 'calls_total{function="A.b",group="torchelastic",result="success"} 1.0'),
        ("A.b.failure", 1, 'calls_total{function="A.b",group="torchelastic",result="failure"} 1.0'),
        ("A.b.duration.ms", 40, 'call_duration_seconds_sum{function="A.b",group="torchelastic"} 0.04'),
        ("A.b.duration.ms", 40, 'call_duration_seconds_count{function="A.b",group="torchelastic"} 1.0'),
        ("workers.t.remaining_restarts", 2, 'remaining_restarts{group="torchelastic",role="t"} 2.0'),
        ("workers.t.flakiness", 25, 'flakiness_ratio{group="torchelastic",role="t"} 0.25'),
        ("workers.t.run_total", 1, 'runs_total{group="torchelastic",role="t"} 1.0'),
        (
            "workers.t.run_failed_no_retries",
            1,
            'run_results_total{group="torchelastic",result="failed_no_retries",role="t"} 1.0',
        ),
        (
            "workers.a.b.healthy",
            1,
            'worker_group_state{group="torchelastic",role="a.b",state="healthy"} 1.0',
        ),
        ("workers.t.loss", 0.5, 'value{group="torchelastic",name="workers.t.loss"} 0.5'),
        ("loss", 0.5, 'value{group="torchelastic",name="loss"} 0.5'),
    ],
)
def test_a_metric_is_kept_under_a_name_and_labels(
    handler: PrometheusMetricHandler, name: str, value: float, line: str
) -> None:
    put_metric(name, value)
    assert f"agentd_elastic_{line}" in shown(handler)


def test_only_the_present_state_of_a_group_is_one(handler: PrometheusMetricHandler) -> None:
    put_metric("workers.t.healthy", 1)
    put_metric("workers.t.failed", 1)
    states = [line for line in shown(handler) if "worker_group_state" in line]
    assert [line for line in states if line.endswith(" 1.0")] == [
        'agentd_elastic_worker_group_state{group="torchelastic",role="t",state="failed"} 1.0'
    ]
    assert len(states) == 7


def test_one_handler_serves_several_groups(handler: PrometheusMetricHandler) -> None:
    configure(handler, "mine")
    put_metric("loss", 1)
    put_metric("loss", 2, "mine")
    assert {
        'agentd_elastic_value{group="torchelastic",name="loss"} 1.0',
        'agentd_elastic_value{group="mine",name="loss"} 2.0',
    } <= shown(handler)


def test_a_second_handler_of_a_registry_needs_a_namespace_of_its_own(
    handler: PrometheusMetricHandler,
) -> None:
    with pytest.raises(ValueError, match="agentd_elastic"):
        PrometheusMetricHandler(handler.registry)
    other = PrometheusMetricHandler(handler.registry, namespace="mine")
    other.emit(MetricData(0.0, "g", "loss", 1))
    assert 'mine_value{group="g",name="loss"} 1.0' in shown(handler)


def test_it_is_a_metric_handler(handler: PrometheusMetricHandler) -> None:
    assert isinstance(handler, MetricHandler)
