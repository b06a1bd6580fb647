"""Exit codes: what each end gives, and that the documentation has the table of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from agentctl import exits
from agentctl.cli import COMMANDS, agentctl
from agentctl.exits import ExitCode, HealthExit
from agentd.api import errors
from agentd.api.types import Failure, Phase, RunStatus
from agentd_client.failures import RunRefused

DOCS = Path(__file__).resolve().parents[3] / "docs"
ROW = re.compile(r"^\| `?(?P<code>\d+)`? \| `(?P<name>[A-Z_]+)` \| (?P<text>.+) \|$", re.MULTILINE)


def ended(phase: Phase, **failure: int) -> RunStatus:
    return RunStatus(run_id="r", phase=phase, first_failure=Failure(**failure) if failure else None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (ended(Phase.SUCCEEDED), 0),
        (ended(Phase.SUCCEEDED, exit_code=3), 0),
        (ended(Phase.FAILED, exit_code=42), 42),
        (ended(Phase.FAILED, signal=9), 137),
        (ended(Phase.FAILED), ExitCode.RUN_FAILED),
        (ended(Phase.FAILED, exit_code=0), ExitCode.RUN_FAILED),
        (ended(Phase.STOPPED), ExitCode.STOPPED),
        (ended(Phase.LOST), ExitCode.LOST),
    ],
)
def test_a_run_gives_the_code_of_its_first_failed_worker(status: RunStatus, code: int) -> None:
    assert exits.of_run(status) == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Unreachable("a"), ExitCode.UNREACHABLE),
        (errors.RunNotFound("r", "a"), ExitCode.NOT_FOUND),
        (errors.LogNotFound("r", "1"), ExitCode.NOT_FOUND),
        (errors.NotRunning("r", "running", "77"), ExitCode.NOT_FOUND),
        (errors.NotRunning("r", "restarting"), ExitCode.REFUSED),
        (errors.DeadlineExceeded("a", 10), ExitCode.TIMEOUT),
        (errors.RunConflict("r", ["x"]), ExitCode.REFUSED),
        (errors.AgentdEnding("a"), ExitCode.REFUSED),
        (errors.InvalidSpec("x", "y"), ExitCode.REFUSED),
        (errors.InternalError("1", "a"), ExitCode.INTERNAL),
        (RunRefused("r", {"a": errors.NoSuchDevice("gpu", "a")}, [], {}), ExitCode.REFUSED),
    ],
)
def test_an_error_gives_the_code_of_its_kind(error: errors.AgentError, code: ExitCode) -> None:
    assert exits.of_error(error) is code


def test_codes_of_agentctl_lie_beyond_those_of_signals() -> None:
    own = {code for code in ExitCode if code not in (ExitCode.OK, ExitCode.USAGE, ExitCode.INTERRUPTED)}
    assert all(128 + 64 < code < 255 for code in own)


def documented(file: str, heading: str) -> dict[str, tuple[int, str]]:
    section = (DOCS / file).read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return {row["name"]: (int(row["code"]), row["text"]) for row in ROW.finditer(section)}


def sentences(kind: type[ExitCode | HealthExit]) -> dict[str, tuple[int, str]]:
    """Each member with the sentence below it."""
    source = inspect.getsource(kind)
    found = re.findall(r'^    ([A-Z_]+) = (\d+)\n    """(.+?)"""', source, re.MULTILINE | re.DOTALL)
    return {name: (int(code), " ".join(text.split())) for name, code, text in found}


@pytest.mark.parametrize(("kind", "heading"), [(ExitCode, "agentctl"), (HealthExit, "agentctl health")])
def test_the_documented_table_is_that_of_the_code(kind: type[ExitCode | HealthExit], heading: str) -> None:
    assert set(sentences(kind)) == {code.name for code in kind}
    assert documented("exit-codes.md", heading) == sentences(kind)


def test_every_command_and_flag_is_documented() -> None:
    text = (DOCS / "cli.md").read_text()
    with agentctl.make_context("agentctl", [], resilient_parsing=True) as context:
        for name in COMMANDS:
            assert f"## agentctl {name}\n" in text, name
            section = text.partition(f"## agentctl {name}\n")[2].partition("\n## ")[0]
            command = agentctl.get_command(context, name)
            assert command is not None
            for parameter in command.params:
                if getattr(parameter, "hidden", False) or parameter.param_type_name != "option":
                    continue
                flag = max(parameter.opts, key=len)
                common = ("--nodes", "--hostfile", "--deadline", "--output")
                assert f"`{flag}" in section or flag in common, f"{name} {flag}"
