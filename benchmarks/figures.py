"""Figures and how they are shown: medians, 99th percentiles, and ratios to torchrun."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Samples of one thing, ours and, where it can be had, torchrun's."""

    what: str
    unit: str
    ours: tuple[float, ...]
    torchrun: tuple[float, ...] = ()
    target: str = ""

    @property
    def ratio(self) -> float | None:
        """torchrun's median over ours."""
        return statistics.median(self.torchrun) / statistics.median(self.ours) if self.torchrun else None


def percentile(samples: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; `share` from 0 to 1."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def show(figures: Sequence[Figure], console: Console) -> None:
    """Print the table."""
    table = Table(title=f"agentd on {platform.machine()}, Linux {platform.release()}")
    for name in ("what", "unit", "median", "p99", "samples", "torchrun", "ratio", "target"):
        table.add_column(name, justify="left" if name in ("what", "target") else "right")
    for figure in figures:
        theirs = f"{statistics.median(figure.torchrun):.1f}" if figure.torchrun else "-"
        ratio = f"{figure.ratio:.1f} x" if figure.ratio else "-"
        table.add_row(
            figure.what,
            figure.unit,
            f"{statistics.median(figure.ours):.1f}",
            f"{percentile(figure.ours, 0.99):.1f}",
            str(len(figure.ours)),
            theirs,
            ratio,
            figure.target,
        )
    console.print(table)


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write samples and the versions they were taken with as JSON."""
    document = {
        "machine": {
            "cpu": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "versions": {name: _version(name) for name in ("agentd-elastic", "grpcio", "protobuf", "torch")},
        "figures": [
            {
                "what": figure.what,
                "unit": figure.unit,
                "samples": figure.ours,
                "torchrun_samples": figure.torchrun,
                "target": figure.target,
            }
            for figure in figures
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
