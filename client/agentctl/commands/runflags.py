"""The flags of `agentctl run`, as one table: torchrun's names and meaning where torchrun has them.

A flag marked `pet` is also read from torchrun's own variable, PET_ and its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from agentctl import flags, torchrun
from agentctl.options import Parsed, complete_files, complete_folders

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

_NNODES: Final = Parsed(flags.parse_nnodes, "N|MIN:MAX")
_NPROC: Final = Parsed(flags.parse_nproc, "N|auto|cpu|gpu")
_SECONDS: Final = Parsed(flags.parse_seconds, "SECONDS")
_STD: Final = Parsed(flags.parse_std, "STREAMS")
_NUMBERS: Final = Parsed(flags.parse_numbers, "LIST")
_PAIRS: Final = Parsed(flags.parse_pairs, "K=V,...")


def _flag(*names: str, text: str, pet: bool = False, **settings: Any) -> Decorator:
    if pet:
        long_name = next(name for name in names if name.startswith("--"))
        settings["envvar"] = f"PET_{long_name.removeprefix('--').replace('-', '_').upper()}"
    return click.option(*names, help=text, **settings)


def _refuse(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        flag = param.opts[0]
        raise click.UsageError(
            f"{flag} is not supported: {torchrun.UNSUPPORTED[flag.removeprefix('--')]}", ctx
        )


_SHAPE: Final[tuple[Decorator, ...]] = (
    _flag(
        "--nnodes",
        type=_NNODES,
        metavar="N|MIN:MAX",
        pet=True,
        text="Nodes, or the fewest and the most. Default: all that are named.",
    ),
    _flag(
        "--nproc-per-node",
        type=_NPROC,
        metavar="N|auto|cpu|gpu",
        pet=True,
        text="Workers on each node. Default: the slots of the hostfile, else 1.",
    ),
    _flag(
        "--max-restarts",
        type=click.IntRange(0),
        metavar="N",
        pet=True,
        text="Failures that lead to a restart of the whole run. Default: 0.",
    ),
    _flag(
        "--rdzv-id",
        "--run-id",
        "run_id",
        metavar="ID",
        pet=True,
        text="The run's name. Default: a new one. A live run of that name is watched, never started twice.",
    ),
    _flag("--role", metavar="NAME", pet=True, text="Name of the workers' role. Default: default."),
    _flag(
        "--devices",
        type=_NUMBERS,
        metavar="0-3",
        text="Devices that workers see (CUDA_VISIBLE_DEVICES); two live runs of a node never share one.",
    ),
    _flag(
        "--monitor-interval",
        type=_SECONDS,
        metavar="SECONDS",
        pet=True,
        text="Upper bound between two checks of the workers. Default: 0.1.",
    ),
    _flag(
        "--stop-grace",
        type=_SECONDS,
        metavar="SECONDS",
        text="Time from SIGTERM to SIGKILL when workers are stopped. Default: 30.",
    ),
    _flag("--label", "labels", multiple=True, metavar="K=V", text="A fact to show with the run."),
    _flag(
        "--preload",
        "preload",
        multiple=True,
        metavar="MODULES",
        text="Modules, by commas, that each node imports once, to fork its Python workers from there.",
    ),
    _flag(
        "--standby",
        is_flag=True,
        text="With --preload: the next round's workers wait, forked already, while this round runs.",
    ),
    _flag("--no-rejoin", is_flag=True, text="A node that was lost stays out when it comes back."),
    _flag(
        "--on-isolation",
        type=click.Choice(["keep", "stop"]),
        metavar="keep|stop",
        text="What becomes of the workers of a node whose hub has not answered for a lease: they go on, or "
        "are stopped with their grace. Default: keep.",
    ),
    _flag(
        "--controller-lease",
        type=_SECONDS,
        metavar="TIME",
        text="Stop the run when nobody has renewed it for so long, such as 30s. This command does while it "
        "stays, `agentctl renew` and the client library too. Default: nobody needs to.",
    ),
)

_PROGRAM: Final[tuple[Decorator, ...]] = (
    _flag("-m", "--module", is_flag=True, text="The program is a Python module."),
    _flag("--no-python", is_flag=True, text="The program is an executable."),
    _flag(
        "--python",
        metavar="PATH",
        shell_complete=complete_files,
        text="Python on the nodes. Default: the one that runs agentctl.",
    ),
    _flag(
        "--workdir",
        metavar="DIR",
        shell_complete=complete_folders,
        text="Directory on the nodes. Default: this one.",
    ),
    _flag("--env", multiple=True, metavar="K=V", text="A variable for the workers."),
    _flag(
        "--env-pass",
        multiple=True,
        metavar="PATTERN,...",
        text="Variables of this environment that go over the network. Default: NCCL_*, TORCH_*, CUDA_*, "
        "OMP_*, PYTHONPATH. Over a Unix socket all of them go.",
    ),
    _flag(
        "--spec",
        "spec_file",
        metavar="FILE.toml",
        shell_complete=complete_files,
        text="A run of several roles, from a file.",
    ),
)

_RENDEZVOUS: Final[tuple[Decorator, ...]] = (
    _flag(
        "--rdzv-endpoint",
        metavar="NODE",
        pet=True,
        text="The agentd that coordinates the run. Default: that of the first node.",
    ),
    _flag(
        "--rdzv-conf",
        type=_PAIRS,
        default="",
        metavar="K=V,...",
        pet=True,
        text="join_timeout, last_call_timeout, timeout (of the hub), heartbeat, lease; in seconds.",
    ),
    _flag(
        "--rdzv-backend",
        type=click.Choice(torchrun.BACKENDS),
        metavar="NAME",
        pet=True,
        text="Accepted for torchrun's sake: every agentd can be the hub.",
    ),
    _flag(
        "--master-addr",
        metavar="ADDR",
        pet=True,
        text="MASTER_ADDR for the workers. Default: the address of rank 0's node.",
    ),
    _flag(
        "--master-port",
        type=click.IntRange(1, 65535),
        metavar="PORT",
        pet=True,
        text="MASTER_PORT for the workers. Default: a free one of rank 0's node.",
    ),
    _flag(
        "--node-rank",
        type=click.IntRange(0),
        metavar="N",
        pet=True,
        text="Accepted for torchrun's sake: the hub gives out ranks in the order of the node list.",
    ),
    _flag(
        "--local-addr",
        metavar="ADDR",
        pet=True,
        text="Accepted for torchrun's sake: agentd's --advertise-addr says it.",
    ),
    _flag("--start-method", type=click.Choice(["spawn", "fork", "forkserver"]), hidden=True, text=""),
    *(_flag(f"--{name}", hidden=True, callback=_refuse, text="") for name in torchrun.UNSUPPORTED),
)

_CONSOLE: Final[tuple[Decorator, ...]] = (
    _flag(
        "--standalone",
        is_flag=True,
        text="Start an agentd on this machine for this run alone. It ends with the run, and with agentctl "
        "however that ends.",
    ),
    _flag("-d", "--detach", is_flag=True, text="Return once the run is started."),
    _flag(
        "--log-dir",
        metavar="DIR",
        shell_complete=complete_folders,
        pet=True,
        text="Root of the log files on the nodes. Default: in agentd's state directory.",
    ),
    _flag(
        "-r",
        "--redirects",
        type=_STD,
        default="0",
        metavar="STREAMS",
        pet=True,
        text="Streams kept off this console: 0 none, 1 stdout, 2 stderr, 3 both, or by local rank as in "
        "0:1,1:3. The log files always have everything.",
    ),
    _flag(
        "-t",
        "--tee",
        type=_STD,
        default="0",
        metavar="STREAMS",
        pet=True,
        text="Streams shown here all the same.",
    ),
    _flag(
        "--local-ranks-filter",
        type=_NUMBERS,
        metavar="0,1",
        pet=True,
        text="Show only these local ranks here.",
    ),
    _flag(
        "--request-id",
        metavar="ID",
        text="Repeats an earlier request: its run is not started again, not even after its end.",
    ),
)

FLAGS: Final = (*_SHAPE, *_PROGRAM, *_RENDEZVOUS, *_CONSOLE)


def run_flags(command: Command) -> Command:
    """All of them."""
    for decorate in reversed(FLAGS):
        command = decorate(command)
    return command
