"""The command line of the daemon: `agentd`, `agentd config`, `agentd reap`, `agentd version`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from agentd import __version__
from agentd.config import ConfigError, Loaded, load
from agentd.config.settings import SETTINGS
from agentd.config.show import as_json, as_toml
from agentd.daemon.exits import ExitCode, StartFailed

# gRPC reads it at its first import, which happens below this module only.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

Command = TypeVar("Command", bound=Callable[..., Any])

_HELP: Mapping[str, tuple[str, str]] = {
    "listen": (
        "TARGET",
        (
            "unix:/path or host:port to serve on; may be repeated. Port 0 is a free one. "
            "Default: a Unix socket in a private directory."
        ),
    ),
    "advertise_addr": (
        "HOST[:PORT]",
        "What other machines are told. Default: a specific bound address, else that of the route to the hub.",
    ),
    "metrics_listen": (
        "HOST:PORT",
        "Where Prometheus finds the node's conditions (GET /metrics). Default: nowhere.",
    ),
    "node_id": ("ID", "This node's name. Default: the host name."),
    "state_dir": (
        "DIR",
        "Journal, sockets and logs. Default: /var/lib/agentd for root, else the XDG state directory.",
    ),
    "port_file": ("FILE", "Gets the bound TCP ports, one on a line, once agentd serves."),
    "log.format": ("text|json", "How log lines look. Default: text."),
    "log.level": ("LEVEL", "debug, info, warning or error. Default: info."),
    "shutdown.grace": (
        "SECONDS",
        "The most time workers get to stop when agentd shuts down. Default: each run's own stop grace.",
    ),
    "retention.age": (
        "TIME",
        "How long an ended run and its logs are kept: seconds, or as 12h, 14d. Default: 14d.",
    ),
    "retention.size": (
        "SIZE",
        "What all runs may take in the state directory, as 500MiB; ended ones go first. Default: 10GiB.",
    ),
    "logs.cap": (
        "SIZE",
        "What is kept of one output stream of one worker, as 500MiB; the oldest goes. 0: all. Default: 1GiB.",
    ),
    "host_mode": (
        "keep|stop",
        "What workers do when agentd dies: go on for the next agentd, or stop. Default: keep.",
    ),
    "insecure": ("", "Serve beyond loopback although nobody is asked who they are."),
}


def _parameter(key: str) -> str:
    return SETTINGS[key].flag.removeprefix("--").replace("-", "_")


def _setting_options(command: Command) -> Command:
    """An option for each setting, and `--config`."""
    for key, (metavar, text) in reversed(list(_HELP.items())):
        kind: dict[str, Any] = {"is_flag": True, "default": None} if not metavar else {"metavar": metavar}
        if key == "listen":
            kind["multiple"] = True
        command = click.option(SETTINGS[key].flag, _parameter(key), help=text, **kind)(command)
    file_help = "Read settings from this TOML file. Also AGENTD_CONFIG."
    return click.option("--config", "config_file", metavar="FILE.toml", help=file_help)(command)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_setting_options
@click.option("--lifeline-fd", type=int, hidden=True, help="Read end of a pipe: its end is a SIGTERM.")
@click.option("--ready-fd", type=int, hidden=True, help="Gets one JSON line once agentd serves.")
@click.version_option(__version__, message="agentd %(version)s")
@click.pass_context
def agentd(context: click.Context, /, lifeline_fd: int | None, ready_fd: int | None, **options: Any) -> None:
    """Run this node's agentd: it starts, watches and stops the worker groups of training runs, over gRPC.

    Flags win over AGENTD_* variables, those over the file, that over defaults: `agentd config` shows what
    is in effect and why. SIGTERM shuts down, a second one ends at once, SIGHUP does nothing.
    """
    context.obj = options
    if context.invoked_subcommand is not None:
        return
    # Before anything else: no child may ever hold an end of them.
    descriptors = [fd for fd in (lifeline_fd, ready_fd) if fd is not None]
    for fd in descriptors:
        _own(fd)
    loaded = _load(options)
    from agentd.daemon.service import Embedding, serve

    code = serve(loaded.config, Embedding(lifeline_fd=lifeline_fd, ready_fd=ready_fd))
    # Everything is closed. A plain exit would still wait for threads that hang with a dead disk.
    os._exit(code)


@agentd.command()
@_setting_options
@click.option("-o", "--output", type=click.Choice(["toml", "json"]), default="toml", show_default=True)
@click.pass_context
def config(context: click.Context, /, output: str, **options: Any) -> None:
    """Print the effective settings and where each came from."""
    loaded = _load(_merged(context.obj, options))
    click.echo(as_json(loaded) if output == "json" else as_toml(loaded), nl=False)


@agentd.command()
@click.option("--state-dir", metavar="DIR", help="State directory of the dead agentd.")
@click.pass_context
def reap(context: click.Context, /, state_dir: str | None) -> None:
    """End the hosts and workers that a dead agentd left. Refused while that agentd lives."""
    loaded = _load(_merged(context.obj, {"state_dir": state_dir}))
    from agentd.daemon.reaping import reap as run_reap

    sys.exit(run_reap(loaded.config, click.echo))


@agentd.command()
def version() -> None:
    """Print the version."""
    click.echo(f"agentd {__version__}")


def main() -> None:
    """The console script. Exits with a code of `ExitCode`."""
    try:
        agentd.main(prog_name="agentd", standalone_mode=True)
    except ConfigError as error:
        _fail(str(error), ExitCode.USAGE)
    except StartFailed as error:
        _fail(str(error), error.code)


def _fail(sentence: str, code: ExitCode) -> None:
    click.echo(f"agentd: {sentence}", err=True)
    sys.exit(code)


def _load(options: Mapping[str, Any]) -> Loaded:
    name = options.get("config_file") or os.environ.get("AGENTD_CONFIG", "")
    given = {key: options.get(_parameter(key)) for key in _HELP}
    return load(
        flags={key: value for key, value in given.items() if value is not None and value != ()},
        environ=os.environ,
        file_text=_text_of(name) if name else "",
        file_name=name,
        uid=os.getuid(),
        hostname=socket.gethostname(),
    )


def _text_of(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"file {name}", "", "it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"file {name}", "", os.strerror(error.errno or 0).lower()) from None


def _merged(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """Options may stand before or behind the subcommand; behind wins."""
    return {**outer, **{name: value for name, value in inner.items() if value is not None and value != ()}}


def _own(fd: int) -> None:
    try:
        os.set_inheritable(fd, False)
    except OSError:
        raise click.UsageError(f"{fd} is no open file descriptor") from None
