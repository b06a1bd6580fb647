"""Settings from four places: which one wins, what is refused, and how the result is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest

from agentd.config import Config, ConfigError, Loaded, LogFormat, LogLevel, load
from agentd.config.settings import SETTINGS
from agentd.config.show import as_json, as_toml


def loaded(
    text: str = "",
    *,
    env: Mapping[str, str] | None = None,
    uid: int = 1000,
    flags: Mapping[str, object] | None = None,
) -> Loaded:
    environ = {"HOME": "/home/u", **(env or {})}
    return load(
        flags=flags or {},
        environ=environ,
        file_text=text,
        file_name="a.toml",
        uid=uid,
        hostname="box.example",
    )


def test_nobody_chose_anything() -> None:
    config = loaded().config
    assert config.node_id == "box.example"
    assert config.state_dir == "/home/u/.local/state/agentd"
    assert config.listen == ("unix:/tmp/agentd-1000/agentd.sock",)
    assert (config.insecure, config.log.format, config.shutdown.grace) == (False, LogFormat.TEXT, None)
    assert set(loaded().origins.values()) == {"default"}


def test_root_and_xdg_have_their_own_places() -> None:
    assert loaded(uid=0).config.state_dir == "/var/lib/agentd"
    assert loaded(uid=0).config.listen == ("unix:/run/agentd/agentd.sock",)
    xdg = loaded(env={"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"}).config
    assert (xdg.state_dir, xdg.listen) == ("/s/agentd", ("unix:/r/agentd/agentd.sock",))


def test_flags_win_over_environment_over_file_over_defaults_and_say_so() -> None:
    text = 'node_id = "file"\nstate_dir = "/file"\nport_file = "/p"\n[log]\nformat = "json"\n'
    env = {"AGENTD_NODE_ID": "env", "AGENTD_STATE_DIR": "/env"}
    found = loaded(text, env=env, flags={"node_id": "flag"})
    assert (found.config.node_id, found.config.state_dir) == ("flag", "/env")
    assert (found.config.port_file, found.config.log.format) == ("/p", LogFormat.JSON)
    assert found.origins["node_id"] == "flag --node-id"
    assert found.origins["state_dir"] == "environment AGENTD_STATE_DIR"
    assert found.origins["log.format"] == "file a.toml"
    assert found.origins["log.level"] == "default"


def test_a_variable_set_to_nothing_is_not_set() -> None:
    assert loaded('node_id = "file"', env={"AGENTD_NODE_ID": ""}).config.node_id == "file"


def test_variables_of_others_are_none_of_our_business() -> None:
    assert loaded(env={"AGENTD_RUN_ID": "r", "AGENTD_NODES": "a,b"}).config == loaded().config


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ('nod_id = "a"', "nod_id", "did you mean 'node_id'"),
        ('[log]\nformt = "json"', "log.formt", "did you mean 'log.format'"),
        ('format = "json"', "format", "did you mean 'log.format'"),
        ("[listen]\nport = 1", "listen", "not a list of targets"),
        ("[qqqq]\nzz = 1", "qqqq", "known are node_id"),
    ],
    ids=["misspelt", "misspelt-in-table", "wrong-table", "table-for-value", "far-off"],
)
def test_an_unknown_key_is_an_error_that_names_it_and_the_nearest(text: str, key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"a\.toml") as caught:
        loaded(text)
    assert caught.value.key == key
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"node_id": "../up"}, "is not a name"),
        ({"node_id": ""}, "is not a name"),
        ({"state_dir": ""}, "the path is empty"),
        ({"listen": ("unix:relative",)}, "is absolute"),
        ({"listen": ("a:b:c",)}, "brackets"),
        ({"listen": ("127.0.0.1:70000",)}, "a port is a number"),
        ({"listen": ("127.0.0.1:7460", "127.0.0.1")}, "twice"),
        ({"advertise_addr": "unix:/x"}, "cannot be reached from other machines"),
        ({"advertise_addr": "0.0.0.0"}, "leads nowhere"),
        ({"advertise_addr": "[::]:7460"}, "leads nowhere"),
        ({"log.format": "xml"}, "is not text or json"),
        ({"shutdown.grace": "soon"}, "not a number of seconds"),
        ({"retention.age": "a fortnight"}, "not a length of time"),
        ({"retention.age": "-1d"}, "not a length of time"),
        ({"retention.age": "nan"}, "not a length of time"),
        ({"retention.age": "inf"}, "not a length of time"),
        ({"retention.age": True}, "not a length of time"),
        ({"retention.size": "10GB"}, "not a size"),
        ({"retention.size": ""}, "not a size"),
        ({"retention.size": "1e40"}, "not a size"),
        ({"shutdown.grace": "-1"}, "not a number of seconds"),
        ({"shutdown.grace": "nan"}, "not a number of seconds"),
        ({"insecure": "maybe"}, "not true or false"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_value_that_makes_no_sense_is_refused_with_its_origin(
    flags: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        loaded(flags=flags)
    (key,) = flags
    assert caught.value.origin == f"flag {SETTINGS[key].flag}"


def test_what_is_no_toml_is_refused_with_the_files_name() -> None:
    with pytest.raises(ConfigError, match=r"a\.toml: not TOML"):
        loaded("node_id = ")


@pytest.mark.parametrize("word", ["1", "true", "YES", "on"])
def test_a_variable_can_say_yes(word: str) -> None:
    assert loaded(env={"AGENTD_INSECURE": word}).config.insecure


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("2.5m", 150), ("12h", 43200), ("14d", 1209600), ("0", 0)]
)
def test_ages_have_units(text: str, seconds: float) -> None:
    assert loaded(flags={"retention.age": text}).config.retention.age == seconds
    assert loaded(f'[retention]\nage = "{text}"').config.retention.age == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("1.5KiB", 1536), ("20MiB", 20 << 20), ("10GiB", 10 << 30), ("1TiB", 1 << 40)],
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert loaded(env={"AGENTD_RETENTION_SIZE": text}).config.retention.size == size
    assert loaded(f"[retention]\nsize = {size}").config.retention.size == size


def test_several_targets_in_each_notation() -> None:
    wanted = ("unix:/a.sock", "127.0.0.1:7460", "[::1]:0", "127.0.0.1:0")
    assert (
        loaded(flags={"listen": ("unix:/a.sock", "127.0.0.1", "[::1]:0", "127.0.0.1:0")}).config.listen
        == wanted
    )
    assert (
        loaded(env={"AGENTD_LISTEN": "unix:/a.sock, 127.0.0.1,[::1]:0,127.0.0.1:0"}).config.listen == wanted
    )
    assert loaded('listen = ["unix:/a.sock", "127.0.0.1", "[::1]:0", "127.0.0.1:0"]').config.listen == wanted
    assert loaded('listen = "unix:/a.sock"').config.listen == ("unix:/a.sock",)


def test_paths_are_made_absolute_where_agentd_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.chdir("/usr")
    config = loaded(flags={"state_dir": "state", "port_file": "~/port"}).config
    assert (config.state_dir, config.port_file) == ("/usr/state", "/home/u/port")


def test_every_leaf_of_the_tree_is_a_setting_and_every_setting_a_leaf() -> None:
    def leaves(tree: Any, prefix: str = "") -> list[str]:
        found = []
        for field in fields(tree):
            value = getattr(tree, field.name)
            key = f"{prefix}{field.name}"
            found += leaves(value, f"{key}.") if is_dataclass(value) else [key]
        return found

    assert sorted(leaves(loaded().config)) == sorted(SETTINGS)


def test_the_tree_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        loaded().config.node_id = "other"  # type: ignore[misc]


def test_what_is_shown_as_toml_reads_back_as_the_same_configuration() -> None:
    listen = ("unix:/ü/a.sock", "127.0.0.1:1")
    flags = {"node_id": "n", "listen": listen, "log.level": "debug", "shutdown.grace": "2.5"}
    found = loaded(flags=flags)
    again = loaded(as_toml(found)).config
    assert again == found.config
    assert isinstance(again, Config)
    assert again.log.level is LogLevel.DEBUG


def test_what_is_shown_names_the_origin_of_each_value() -> None:
    found = loaded("[log]\nformat = 'json'", env={"AGENTD_NODE_ID": "n"})
    lines = as_toml(found).splitlines()
    assert next(line for line in lines if line.startswith("node_id")).endswith("# environment AGENTD_NODE_ID")
    assert any(line.startswith("# grace is not set") and line.endswith("# default") for line in lines)
    shown = json.loads(as_json(found))
    assert shown["log.format"] == {"value": "json", "origin": "file a.toml"}
    assert shown["shutdown.grace"] == {"value": None, "origin": "default"}


def test_metrics_are_told_over_tcp_only() -> None:
    assert loaded(flags={"metrics_listen": "127.0.0.1:9460"}).config.metrics_listen == "127.0.0.1:9460"
    with pytest.raises(ConfigError, match="give HOST:PORT"):
        loaded(flags={"metrics_listen": "unix:/run/metrics"})
