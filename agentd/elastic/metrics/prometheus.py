"""The agent's metrics for Prometheus. prometheus-client is imported when a handler is made, not before.

handler = PrometheusMetricHandler()
configure(handler)
prometheus_client.start_http_server(9400)
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from agentd.elastic.metrics.api import MetricData, MetricHandler

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["PrometheusMetricHandler"]

NAMESPACE = "agentd_elastic"

_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
_CALL_RESULTS = {"success", "failure"}
_RUN_RESULTS = {
    "run_success_with_retries",
    "run_success_no_retries",
    "run_failed_with_retries",
    "run_failed_no_retries",
}
_STATES = ("unknown", "init", "healthy", "unhealthy", "stopped", "succeeded", "failed")
_DURATION = ".duration.ms"
_WORKERS = "workers."


class PrometheusMetricHandler(MetricHandler):
    """Keeps torch's metrics as counters, gauges and a histogram, each with a `group` label.

    | put as | kept as |
    |---|---|
    | `F.success`, `F.failure` | counter `calls_total{function="F", result}` |
    | `F.duration.ms` | histogram `call_duration_seconds{function="F"}` |
    | `workers.R.remaining_restarts` | gauge `remaining_restarts{role="R"}` |
    | `workers.R.STATE` | gauge `worker_group_state{role="R", state}`: 1 for the present one, else 0 |
    | `workers.R.flakiness` | gauge `flakiness_ratio{role="R"}`, from 0 to 1 |
    | `workers.R.run_total` | counter `runs_total{role="R"}` |
    | `workers.R.run_success_no_retries` and the like | counter `run_results_total{role="R", result}` |
    | anything else | gauge `value{name}`: the last one |

    All names begin with the namespace. One handler serves any number of groups.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, namespace: str = NAMESPACE) -> None:
        """`registry` is prometheus-client's own by default.

        Raises `ValueError` if the registry has a handler of this namespace already: `configure` that one for
        several groups, or give another namespace.
        """
        from prometheus_client import REGISTRY, Counter, Gauge, Histogram

        self.registry = REGISTRY if registry is None else registry
        """What an exporter shows: `generate_latest(handler.registry)`."""
        counter = partial(Counter, namespace=namespace, registry=self.registry)
        gauge = partial(Gauge, namespace=namespace, registry=self.registry)
        self._calls = counter(
            "calls",
            "Calls of measured functions.",
            ("group", "function", "result"),
        )
        self._durations = Histogram(
            "call_duration_seconds",
            "How long calls of measured functions took.",
            ("group", "function"),
            buckets=_BUCKETS,
            namespace=namespace,
            registry=self.registry,
        )
        self._remaining = gauge("remaining_restarts", "Restarts left.", ("group", "role"))
        self._states = gauge(
            "worker_group_state",
            "1 for the state of the worker group.",
            ("group", "role", "state"),
        )
        self._flakiness = gauge(
            "flakiness_ratio",
            "Used part of the restarts; 1 for a failed run.",
            ("group", "role"),
        )
        self._runs = counter("runs", "Runs that ended.", ("group", "role"))
        self._results = counter("run_results", "How runs ended.", ("group", "role", "result"))
        self._values = gauge("value", "Last values of other metrics.", ("group", "name"))

    def emit(self, metric_data: MetricData) -> None:
        """Keep the value. The timestamp is dropped: Prometheus takes the time of its own reading."""
        _, group, name, value = metric_data
        group = group or ""
        if not self._keep_call(group, name, value) and not self._keep_workers(group, name, value):
            self._values.labels(group, name).set(value)

    def _keep_call(self, group: str, name: str, value: float) -> bool:
        if name.endswith(_DURATION):
            self._durations.labels(group, name[: -len(_DURATION)]).observe(value / 1000)
            return True
        function, _, result = name.rpartition(".")
        if not function or result not in _CALL_RESULTS:
            return False
        self._calls.labels(group, function, result).inc(value)
        return True

    def _keep_workers(self, group: str, name: str, value: float) -> bool:
        # A role may have dots in it; what is said of it has none.
        role, _, what = name[len(_WORKERS) :].rpartition(".")
        if not name.startswith(_WORKERS) or not role:
            return False
        if what in _STATES:
            for state in _STATES:
                self._states.labels(group, role, state).set(value if state == what else 0)
        elif what == "remaining_restarts":
            self._remaining.labels(group, role).set(value)
        elif what == "flakiness":
            self._flakiness.labels(group, role).set(value / 100)
        elif what == "run_total":
            self._runs.labels(group, role).inc(value)
        elif what in _RUN_RESULTS:
            self._results.labels(group, role, what.removeprefix("run_")).inc(value)
        else:
            return False
        return True
