"""Reads the configuration: flags over environment over file over defaults, each value with its origin.

Pure: the caller gives the texts. An unknown key is an error, never ignored: a misspelt setting must not
look like one that works.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from agentd.config.model import Config, default_config
from agentd.config.settings import SETTINGS, Setting
from agentd.quickdata import dataclass

DEFAULT = "default"


class ConfigError(Exception):
    """Something agentd was told makes no sense."""

    def __init__(self, origin: str, key: str, problem: str) -> None:
        super().__init__(f"{origin}: {key}: {problem}" if key else f"{origin}: {problem}")
        self.origin = origin
        self.key = key
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and where each of its values came from, by key."""

    config: Config
    origins: Mapping[str, str]


def load(
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    file_text: str = "",
    file_name: str = "",
    uid: int,
    hostname: str,
) -> Loaded:
    """The effective configuration. `flags` has settings' keys and only those that were given."""
    values: dict[str, object] = {}
    origins = dict.fromkeys(SETTINGS, DEFAULT)
    for key, raw, origin in (
        *_from_file(file_text, file_name),
        *_from_environ(environ),
        *((key, raw, f"flag {SETTINGS[key].flag}") for key, raw in flags.items()),
    ):
        values[key] = _read(SETTINGS[key], raw, origin)
        origins[key] = origin
    return Loaded(_with_values(default_config(environ, uid=uid, hostname=hostname), values), origins)


def effective(config: Config) -> Iterator[tuple[str, Any]]:
    """Every leaf of the tree as (key, value), in the order of the settings."""
    for key in SETTINGS:
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        yield key, value


def _read(setting: Setting, raw: object, origin: str) -> object:
    try:
        return setting.read(raw)
    except ValueError as error:
        raise ConfigError(origin, setting.key, str(error)) from None


def _from_environ(environ: Mapping[str, str]) -> Iterator[tuple[str, object, str]]:
    for setting in SETTINGS.values():
        # A variable set to nothing is the shell's way to unset one for a single command.
        if text := environ.get(setting.env):
            yield setting.key, text, f"environment {setting.env}"


def _from_file(text: str, name: str) -> Iterator[tuple[str, object, str]]:
    if not text:
        return
    # By name, so that a type checker for 3.10 asks for neither; late, as most start without a file.
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    origin = f"file {name}"
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(origin, "", f"not TOML: {error}") from None
    except (ValueError, RecursionError):
        # A number of thousands of digits, or brackets in brackets.
        raise ConfigError(origin, "", "a number in it is too long, or a list too deeply nested") from None
    for key, raw in _leaves(table):
        if key not in SETTINGS:
            raise ConfigError(origin, key, _unknown(key))
        yield key, raw, origin


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and any(known.startswith(f"{key}.") for known in SETTINGS):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _unknown(key: str) -> str:
    nearest = difflib.get_close_matches(key, SETTINGS, n=1, cutoff=0.5)
    if not nearest:
        # "format" at the top is most likely "log.format".
        nearest = [known for known in SETTINGS if known.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {', '.join(SETTINGS)}"
    return f"there is no such setting{hint}"


def _with_values(tree: Any, values: Mapping[str, object], prefix: str = "") -> Any:
    changed: dict[str, Any] = {}
    for field in fields(tree):
        key = f"{prefix}{field.name}"
        value = getattr(tree, field.name)
        if is_dataclass(value):
            changed[field.name] = _with_values(value, values, f"{key}.")
        elif key in values:
            changed[field.name] = values[key]
    return replace(tree, **changed)
