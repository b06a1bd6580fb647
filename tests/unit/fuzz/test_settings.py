"""What people write: configuration files, environment, flags, targets, host files, spec files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentctl import flags, hosts
from agentctl.specfile import parse_spec
from agentd.api.convert import run_spec_from_message, run_spec_to_message
from agentd.api.errors import AgentError, InvalidSpec
from agentd.api.targets import parse_target
from agentd.config.load import ConfigError, load
from agentd.config.settings import SETTINGS
from agentd.core.specs import validate
from agentd.elastic.rendezvous.utils import parse_rendezvous_config, parse_rendezvous_endpoint
from tests.unit.fuzz.hostile import examples, texts

LONG = "9" * 5_000
words = st.sampled_from(
    [
        "unix:",
        "unix:///",
        "/x",
        "\0",
        "host",
        ":",
        "[",
        "]",
        "::1",
        "%eth0",
        "0",
        "65536",
        "-",
        ",",
        "=",
        LONG,
    ]
    + [
        "1e400",
        "nan",
        "inf",
        "-1",
        "0x10",
        "1_000",
        "٣",
        "\ud800",
        "\n",
        " ",
        "~nobody/x",
        "s",
        "GiB",
        "auto",
    ]
)
phrases = texts | st.lists(words, max_size=6).map("".join)


def config(
    *, flags: dict[str, object] | None = None, environ: dict[str, str] | None = None, text: str = ""
) -> None:
    with contextlib.suppress(ConfigError):
        load(
            flags=flags or {}, environ=environ or {}, file_text=text, file_name="f", uid=1000, hostname="h"
        )  # fmt: skip


@examples(25)
@given(given_=st.dictionaries(st.sampled_from([s.env for s in SETTINGS.values()]), phrases, max_size=3))
@example(given_={"AGENTD_STATE_DIR": "~nobody-of-that-name/x"})
@example(given_={"AGENTD_LISTEN": f"h:{LONG}"})
@example(given_={"AGENTD_STATE_DIR": "/tmp/\udcff"})
def test_environment_is_a_configuration_or_a_config_error(given_: dict[str, str]) -> None:
    config(environ=given_)


toml_values = st.one_of(
    st.sampled_from(
        ["nan", "inf", "-inf", "1e400", "-1", "true", "[]", "{}", "[[]]", '"x"', '""', "''", "1979-05-27"]
        + ["0x" + "f" * 400, "0x" + "f" * 5_000, "9" * 100, '"\\u0000"', '"unix:x"', "[" * 40 + "]" * 40]
        + ['["127.0.0.1:0", 5]', '"5 GiB"', "1.5", '"1e300d"', "{a = 1}", "[" * 3_000 + "]" * 3_000]
    ),
    st.integers().map(str),
    st.floats(allow_nan=False).map(repr),
)
toml_files = st.lists(
    st.tuples(st.sampled_from([*SETTINGS, "log", "shutdown", "x", "log.x", '"a\\u0000"']), toml_values),
    max_size=3,
).map(lambda rows: "\n".join(f"{key} = {value}" for key, value in rows))


@examples(50)
@given(text=toml_files | st.text(max_size=60))
@example(text="shutdown.grace = 0x" + "f" * 400)
@example(text="x = " + "[" * 3_000 + "]" * 3_000)
def test_a_configuration_file_is_a_configuration_or_a_config_error(text: str) -> None:
    config(text=text)


@examples(25)
@given(text=phrases)
@example(text=f"host:{LONG}")
@example(text="unix:/a\0b")
def test_a_target_is_one_or_an_invalid_spec(text: str) -> None:
    try:
        target = parse_target(text)
    except InvalidSpec:
        return
    assert parse_target(str(target)) == target
    str(target).encode()
    assert "\0" not in str(target)


@pytest.mark.parametrize(
    "parse",
    [
        flags.parse_std,
        flags.parse_nnodes,
        flags.parse_nproc,
        flags.parse_numbers,
        flags.parse_pairs,
        flags.parse_seconds,
        flags.parse_signal,
        hosts.parse_hostfile,
        parse_rendezvous_config,
        lambda text: parse_rendezvous_endpoint(text, 1),
        lambda text: flags.parse_env([text]),
        lambda text: hosts.split_nodes([text]),
    ],
)
@examples(25)
@given(text=phrases)
@example(text=LONG)
@example(text=f"a slots={LONG}")
@example(text=f"0-{LONG}")
def test_a_flag_is_a_value_or_a_short_value_error(parse: Callable[[str], object], text: str) -> None:
    problem = ""
    try:
        parse(text)
    except ValueError as error:
        problem = str(error)
    assert "digits" not in problem, "Python's words, not ours"


COMMAND = '[[roles]]\ncommand.entrypoint = "x.py"\n'
spec_keys = st.sampled_from(
    ["run_id", "nodes", "max_restarts", "max_membership_changes", "stop_grace", "monitor_interval", "labels"]
    + ["no_rejoin", "on_isolation", "rendezvous.lease", "rendezvous.min_members", "rendezvous"]
)
role_keys = st.sampled_from(
    ["role", "nodes", "local_world_size", "env", "devices", "master_port", "log_dir", "command.arguments"]
    + ["local_world_size_by_node.a", "command.kind", "command.python"]
)
spec_files = st.builds(
    lambda above, below: "\n".join([*above, COMMAND, *below]),
    st.lists(st.builds("{} = {}".format, spec_keys, toml_values), max_size=2),
    st.lists(st.builds("{} = {}".format, role_keys, toml_values), max_size=2),
)


@examples(35)
@given(text=spec_files)
@example(text="stop_grace = nan\n" + COMMAND)
@example(text="rendezvous.lease = inf\n" + COMMAND)
@example(text="max_restarts = 99999999999999999999\n" + COMMAND)
@example(text=COMMAND + "master_port = -1")
@example(text=COMMAND + "devices = [-1]")
@example(text="stop_grace = 0x" + "f" * 400 + "\n" + COMMAND)
def test_a_spec_file_is_a_spec_that_can_be_sent_or_a_value_error(text: str) -> None:
    try:
        spec = parse_spec(text)
    except ValueError:
        return
    try:
        message = run_spec_to_message(spec)
    except InvalidSpec:
        return
    with contextlib.suppress(AgentError):
        validate(run_spec_from_message(message))
