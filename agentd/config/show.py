"""How an effective configuration is printed: as TOML that `--config` reads again, or as JSON."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from typing import Any

from agentd.config.load import Loaded, effective


def as_toml(loaded: Loaded) -> str:
    """One `key = value  # origin` line for each setting, under its table."""
    rows = [(key, _toml_value(value), loaded.origins[key]) for key, value in effective(loaded.config)]
    width = max(len(f"{key.rpartition('.')[2]} = {text}") for key, text, _ in rows)
    return "\n".join(_toml_lines(rows, width)) + "\n"


def as_json(loaded: Loaded) -> str:
    """An object with `value` and `origin` for each key."""
    settings = {
        key: {"value": _plain(value), "origin": loaded.origins[key]}
        for key, value in effective(loaded.config)
    }
    return json.dumps(settings, indent=2) + "\n"


def _toml_lines(rows: list[tuple[str, str, str]], width: int) -> Iterator[str]:
    table = ""
    for key, text, origin in rows:
        section, _, name = key.rpartition(".")
        if section != table:
            yield f"\n[{section}]"
            table = section
        line = f"{name} = {text}"
        # A setting that is not set has no TOML value: its line is a comment.
        yield f"{'# ' if text == _UNSET else ''}{line:<{width}}  # {origin}"


_UNSET = "(not set)"


def _toml_value(value: Any) -> str:
    plain = _plain(value)
    # JSON's texts, numbers, booleans and lists of them are TOML's too.
    return _UNSET if plain is None else json.dumps(plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    return value
