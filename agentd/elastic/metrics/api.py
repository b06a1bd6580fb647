"""Metrics: a value of a name in a group, given at once to the handler configured for the group.

No handler is configured at first, and a metric then costs next to nothing. A handler that raises never harms
whoever puts a metric.
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar, overload

from agentd.elastic.tolerance import tolerate

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
    "is_listening",
    "prof",
    "profile",
    "publish_metric",
    "put_metric",
]

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_GROUP = "torchelastic"
"""The group of the agent's own metrics; others' belong into groups of their own."""


class MetricData(NamedTuple):
    """One value of one metric."""

    timestamp: float
    """Seconds since the epoch."""
    group_name: str
    """Who the metric belongs to; `torchelastic` is the agent's own group."""
    name: str
    """What was measured; unique in its group."""
    value: float
    """Most are whole numbers; durations are milliseconds and end in `.ms`."""


class MetricsConfig:
    """Parameters for `initialize_metrics`."""

    __slots__ = ("params",)

    def __init__(self, params: dict[str, str] | None = None) -> None:
        """`params` is kept as given; None means none."""
        self.params: dict[str, str] = {} if params is None else params
        """The parameters, by name."""


class MetricHandler(ABC):
    """Where metrics go: derive from it and `configure` it. It may be called on any thread."""

    @abstractmethod
    def emit(self, metric_data: MetricData) -> None:
        """Take one value. It should not wait; what it raises is logged once and otherwise ignored."""


class ConsoleMetricHandler(MetricHandler):
    """Prints each value to stdout as `[timestamp][group]: name=value`."""

    def emit(self, metric_data: MetricData) -> None:
        """Print the value."""
        timestamp, group, name, value = metric_data
        print(f"[{timestamp}][{group}]: {name}={value}")


class NullMetricHandler(MetricHandler):
    """Drops all: the default. For groups it handles, nothing is built or measured that only it would get."""

    def emit(self, metric_data: MetricData) -> None:
        """Drop the value."""


class MetricStream:
    """The way into one group: a handler and the group's name."""

    def __init__(self, group_name: str, handler: MetricHandler) -> None:
        """Most want `getStream`, which knows the configured handler."""
        self.group_name = group_name
        """The group of all values put here."""
        self.handler = handler
        """What gets them."""

    def add_value(self, metric_name: str, metric_value: float) -> None:
        """Give a value, timed now, to the handler. Never raises for the handler's errors."""
        if type(self.handler) is NullMetricHandler:
            return
        try:
            self.handler.emit(MetricData(time.time(), self.group_name, metric_name, metric_value))
        except Exception as error:  # noqa: BLE001 - whatever a handler does, what is measured goes on
            tolerate(self.handler, error)


_handlers: dict[str, MetricHandler] = {}
_default_handler: MetricHandler = NullMetricHandler()


def configure(handler: MetricHandler, group: str | None = None) -> None:
    """Send the metrics of `group` to `handler` from now on; without it, those of all groups without one."""
    global _default_handler
    if group is None:
        _default_handler = handler
    else:
        _handlers[group] = handler


def getStream(group: str) -> MetricStream:
    """The stream of a group, with the handler that is configured for it now."""
    return MetricStream(group, _handlers.get(group, _default_handler))


def is_listening(group: str = DEFAULT_GROUP) -> bool:
    """Whether a metric of the group would reach any handler: ask before values that are dear to compute."""
    return type(_handlers.get(group, _default_handler)) is not NullMetricHandler


def put_metric(metric_name: str, metric_value: float, metric_group: str = DEFAULT_GROUP) -> None:
    """Publish one value: a dictionary look-up where nothing listens. Never raises for a handler's errors."""
    handler = _handlers.get(metric_group, _default_handler)
    if type(handler) is not NullMetricHandler:
        MetricStream(metric_group, handler).add_value(metric_name, metric_value)


def get_elapsed_time_ms(start_time_in_seconds: float) -> int:
    """Whole milliseconds since a `time.time()`."""
    return int((time.time() - start_time_in_seconds) * 1000)


@overload
def prof(fn: Callable[P, R], group: str = ...) -> Callable[P, R]: ...
@overload
def prof(fn: None = None, group: str = ...) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def prof(fn: Callable[..., Any] | None = None, group: str = DEFAULT_GROUP) -> Callable[..., Any]:
    """Measure the calls of a function, as `@prof` or `@prof(group="mine")`.

    Each call puts `NAME.success` 1 or, when it raised anything at all, `NAME.failure` 1, and then
    `NAME.duration.ms` in whole milliseconds. NAME is `Class.method`, or `module.function` with the last part
    of the module's name: torch's names.
    """
    if fn is None:
        return lambda function: _measured(function, _metric_name(function), group)
    return _measured(fn, _metric_name(fn), group)


def profile(group: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Deprecated, use `prof`: the same with the bare function's name. The group is `torchelastic` if None."""
    warnings.warn("profile is deprecated: use prof", FutureWarning, stacklevel=2)
    return lambda function: _measured(function, getattr(function, "__name__", "call"), group or DEFAULT_GROUP)


def publish_metric(metric_group: str, metric_name: str, metric_value: float) -> None:
    """Deprecated, use `put_metric`, which takes the group last."""
    warnings.warn("publish_metric is deprecated: use put_metric", FutureWarning, stacklevel=2)
    put_metric(metric_name, metric_value, metric_group)


def _measured(function: Callable[P, R], name: str, group: str) -> Callable[P, R]:
    @wraps(function)
    def measuring(*args: P.args, **kwargs: P.kwargs) -> R:
        start = time.monotonic()
        try:
            result = function(*args, **kwargs)
        except BaseException:
            if is_listening(group):
                _put_outcome(name, "failure", start, group)
            raise
        if is_listening(group):
            _put_outcome(name, "success", start, group)
        return result

    return measuring


def _put_outcome(name: str, outcome: str, start: float, group: str) -> None:
    duration_ms = int((time.monotonic() - start) * 1000)
    put_metric(f"{name}.{outcome}", 1, group)
    put_metric(f"{name}.duration.ms", duration_ms, group)


def _metric_name(function: Callable[..., Any]) -> str:
    qualname: str = getattr(function, "__qualname__", type(function).__qualname__)
    module: str = getattr(function, "__module__", "") or ""
    if "." in qualname or not module:
        return qualname
    return f"{module.rpartition('.')[2]}.{qualname}"
