"""How an effective configuration is printed: as TOML that `--config` reads again, or as JSON."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from typing import Any

from agentd.config.load import Loaded, effective


def as_toml(loaded: Loaded) -> str:
    """One `key = value  # origin` line for each setting, under its table."""
    rows = [(key, _toml_line(key, value), loaded.origins[key]) for key, value in effective(loaded.config)]
    width = max(len(line) for _, line, _ in rows)
    return "\n".join(_in_tables(rows, width)) + "\n"


def as_json(loaded: Loaded) -> str:
    """An object with `value` and `origin` for each key."""
    settings = {
        key: {"value": _plain(value), "origin": loaded.origins[key]}
        for key, value in effective(loaded.config)
    }
    return json.dumps(settings, indent=2) + "\n"


def _in_tables(rows: list[tuple[str, str, str]], width: int) -> Iterator[str]:
    table = ""
    for key, line, origin in rows:
        section = key.rpartition(".")[0]
        if section != table:
            yield f"\n[{section}]"
            table = section
        yield f"{line:<{width}}  # {origin}"


def _toml_line(key: str, value: Any) -> str:
    name, plain = key.rpartition(".")[2], _plain(value)
    if plain is None:
        # What is not set has no TOML value.
        return f"# {name} is not set"
    # JSON's texts, numbers, booleans and lists of them are TOML's too.
    return f"{name} = {json.dumps(plain, ensure_ascii=False)}"


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    return value
