"""The DDP training of the examples, and what it leaves behind at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "examples" / "ddp_train.py"


def result(folder: Path) -> dict[str, Any]:
    """What a training with this checkpoint directory wrote when it was done."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def parameters(folder: Path) -> list[float]:
    """The trained model as one list of numbers."""
    weights, bias = result(folder)["parameters"]
    return [*(value for row in weights for value in row), *bias]
