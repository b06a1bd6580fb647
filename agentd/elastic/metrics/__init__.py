"""Metrics of the agent and of whoever wants to put some: torch's `elastic.metrics`.

`configure(handler)` says where they go; `put_metric` and `prof` make them. `metrics.prometheus` has a handler
for Prometheus.
"""

from agentd.elastic.metrics.api import (
    ConsoleMetricHandler,
    MetricData,
    MetricHandler,
    MetricsConfig,
    MetricStream,
    NullMetricHandler,
    configure,
    get_elapsed_time_ms,
    getStream,
    is_listening,
    prof,
    profile,
    publish_metric,
    put_metric,
)

__all__ = [
    "ConsoleMetricHandler",
    "MetricData",
    "MetricHandler",
    "MetricStream",
    "MetricsConfig",
    "NullMetricHandler",
    "configure",
    "getStream",
    "get_elapsed_time_ms",
    "initialize_metrics",
    "is_listening",
    "prof",
    "profile",
    "publish_metric",
    "put_metric",
]


def initialize_metrics(cfg: MetricsConfig | None = None) -> None:
    """Does nothing, as in torch, where a site's own build may fill it: handlers are set with `configure`."""
