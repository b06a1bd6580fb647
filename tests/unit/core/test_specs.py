"""Specs: what is refused and by which name, what counts as another spec, what a node has of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.api.errors import AgentError, InvalidSpec, LimitExceeded
from agentd.api.types import Command, LocalWorldSizeRule, RendezvousSpec, RoleSpec, RunSpec
from agentd.core.specs import (
    Member,
    differing_fields,
    expected_members,
    local_world_size_of,
    member_bounds,
    roles_of_node,
    validate,
)

ROLE = RoleSpec(command=Command(entrypoint="/train.py"))
SPEC = RunSpec(run_id="job-1", roles=(ROLE,), nodes=("a", "b"))
Change = Callable[[RunSpec], RunSpec]


def role(**changes: object) -> Change:
    return lambda spec: replace(spec, roles=(replace(spec.roles[0], **changes),))  # type: ignore[arg-type]


def command(**changes: object) -> Change:
    return lambda spec: role(command=replace(spec.roles[0].command, **changes))(spec)  # type: ignore[arg-type]


def run(**changes: object) -> Change:
    return lambda spec: replace(spec, **changes)  # type: ignore[arg-type]


def rendezvous(**changes: object) -> Change:
    return run(rendezvous=RendezvousSpec(**changes))  # type: ignore[arg-type]


REFUSED: list[tuple[str, Change, type[AgentError], str]] = [
    ("empty run id", run(run_id=""), InvalidSpec, "run_id"),
    ("path as run id", run(run_id="../../etc"), InvalidSpec, "run_id"),
    ("hidden run id", run(run_id=".hidden"), InvalidSpec, "run_id"),
    ("run id with newline", run(run_id="job\n"), InvalidSpec, "run_id"),
    ("long run id", run(run_id="x" * 129), InvalidSpec, "run_id"),
    ("no role", run(roles=()), InvalidSpec, "roles"),
    ("a role twice", run(roles=(ROLE, ROLE)), InvalidSpec, "roles"),
    ("path as role", role(role="a/b"), InvalidSpec, "roles.role"),
    ("a node twice", run(nodes=("a", "b", "a")), InvalidSpec, "nodes"),
    ("empty node", run(nodes=("a", "")), InvalidSpec, "nodes"),
    ("node with a space", run(nodes=("a b",)), InvalidSpec, "nodes"),
    ("unlisted node of a role", role(nodes=("c",)), InvalidSpec, "roles[default].nodes"),
    ("unlisted exception", role(local_world_size_by_node={"c": 2}), InvalidSpec, "roles[default].nodes"),
    ("no workers", role(local_world_size=0), InvalidSpec, "roles[default].local_world_size"),
    ("10,000 workers", role(local_world_size=10_000), InvalidSpec, "roles[default].local_world_size"),
    (
        "10,000 workers on one",
        role(local_world_size_by_node={"b": 10_000}),
        InvalidSpec,
        "roles[default].local_world_size_by_node[b]",
    ),
    ("no program", command(entrypoint=""), InvalidSpec, "roles[default].command.entrypoint"),
    ("NUL in an argument", command(arguments=("a\0b",)), InvalidSpec, "roles[default].command.arguments"),
    ("lone surrogate", command(arguments=("\ud900",)), InvalidSpec, "roles[default].command.arguments"),
    (
        "relative directory",
        command(working_directory="x"),
        InvalidSpec,
        "roles[default].command.working_directory",
    ),
    ("relative log dir", role(log_dir="logs"), InvalidSpec, "roles[default].log_dir"),
    ("empty variable", role(env={"": "x"}), InvalidSpec, "roles[default].env"),
    ("variable with =", role(env={"A=B": "x"}), InvalidSpec, "roles[default].env"),
    ("NUL in a variable", role(env={"A": "\0"}), InvalidSpec, "roles[default].env[A]"),
    ("a device twice", role(devices=(1, 1)), InvalidSpec, "roles[default].devices"),
    ("port", role(master_port=65_536), InvalidSpec, "roles[default].master_port"),
    ("min over max", rendezvous(min_members=3, max_members=2), InvalidSpec, "rendezvous.min_members"),
    ("negative timeout", rendezvous(join_timeout=-1.0), InvalidSpec, "rendezvous.join_timeout"),
    ("zero timeout", rendezvous(join_timeout=0.0), InvalidSpec, "rendezvous.join_timeout"),
    ("timeout that is none", rendezvous(join_timeout=float("nan")), InvalidSpec, "rendezvous.join_timeout"),
    ("lease under heartbeat", rendezvous(heartbeat=2.0, lease=1.0), InvalidSpec, "rendezvous.lease"),
    ("negative restarts", run(max_restarts=-1), InvalidSpec, "max_restarts"),
    ("negative grace", run(stop_grace=-0.5), InvalidSpec, "stop_grace"),
    ("no interval", run(monitor_interval=0.0), InvalidSpec, "monitor_interval"),
]
TOO_MUCH: list[tuple[str, Change]] = [
    ("arguments", command(arguments=("x" * 1000,) * 1100)),
    ("one argument", command(arguments=("x" * 200_000,))),
    ("environment", role(env={f"V{index}": "x" * 1000 for index in range(1100)})),
    ("one variable", role(env={"A": "x" * 200_000})),
    ("nodes", run(nodes=tuple(f"n{index}" for index in range(5000)))),
]


@pytest.mark.parametrize(
    ("change", "kind", "field"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_a_bad_spec_is_refused_by_the_name_of_its_field(
    change: Change, kind: type[AgentError], field: str
) -> None:
    with pytest.raises(kind) as refusal:
        validate(change(SPEC))
    assert refusal.value.facts["field"] == field
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("change", [case[1] for case in TOO_MUCH], ids=[case[0] for case in TOO_MUCH])
def test_too_much_of_something_is_named(change: Change) -> None:
    with pytest.raises(LimitExceeded) as refusal:
        validate(change(SPEC))
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    "change",
    [
        run(),
        run(nodes=()),
        run(stop_grace=0.0),
        role(local_world_size=4096),
        role(local_world_size=LocalWorldSizeRule.AUTO),
        rendezvous(min_members=2, max_members=4),
        rendezvous(last_call=0.0),
        command(arguments=("", "--name=käse", "x" * 100_000)),
    ],
)
def test_a_good_spec_passes(change: Change) -> None:
    validate(change(SPEC))


def test_a_spec_differs_from_itself_in_nothing() -> None:
    assert differing_fields(SPEC, replace(SPEC)) == ()


def test_the_order_of_nodes_and_variables_is_no_difference() -> None:
    one = role(env={"A": "1", "B": "2"}, nodes=("a", "b"))(SPEC)
    other = role(env={"B": "2", "A": "1"}, nodes=("b", "a"))(replace(SPEC, nodes=("b", "a")))
    assert differing_fields(one, other) == ()


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (run(max_restarts=3), ("max_restarts",)),
        (run(nodes=("a", "c")), ("nodes",)),
        (rendezvous(min_members=1), ("rendezvous.min_members",)),
        (command(arguments=("-x",)), ("roles[default].command.arguments",)),
        (role(env={"A": "1"}), ("roles[default].env[A]",)),
        (role(role="trainer"), ("roles[default]", "roles[trainer]")),
        (run(labels={"team": "x"}, stop_grace=3.0), ("labels[team]", "stop_grace")),
    ],
)
def test_a_difference_is_named(change: Change, names: tuple[str, ...]) -> None:
    assert differing_fields(SPEC, change(SPEC)) == names
    assert differing_fields(change(SPEC), SPEC) == names


def test_the_order_of_roles_is_a_difference() -> None:
    two = replace(SPEC, roles=(ROLE, replace(ROLE, role="eval")))
    assert differing_fields(two, replace(two, roles=two.roles[::-1])) == ("roles",)


TWO_ROLES = replace(
    SPEC,
    nodes=("a", "b", "c"),
    roles=(replace(ROLE, role="train", nodes=("a", "b")), replace(ROLE, role="log")),
)


def test_members_are_listed_role_by_role() -> None:
    expected = [("a", "train"), ("b", "train"), ("a", "log"), ("b", "log"), ("c", "log")]
    assert expected_members(TWO_ROLES) == tuple(Member(*pair) for pair in expected)


@pytest.mark.parametrize(
    ("spec", "node", "roles"),
    [
        (TWO_ROLES, "a", ["train", "log"]),
        (TWO_ROLES, "c", ["log"]),
        (TWO_ROLES, "stranger", ["log"]),
        (SPEC, "stranger", ["default"]),
        (role(nodes=("a",))(SPEC), "stranger", ["default"]),
        (role(nodes=("a",))(SPEC), "b", []),
        (replace(SPEC, nodes=()), "", ["default"]),
    ],
)
def test_a_node_finds_its_roles_by_name(spec: RunSpec, node: str, roles: list[str]) -> None:
    assert [each.role for each in roles_of_node(spec, node)] == roles


@pytest.mark.parametrize(
    ("change", "bounds"),
    [
        (run(), (2, 2)),
        (run(nodes=()), (1, 1)),
        (rendezvous(min_members=1), (1, 2)),
        (rendezvous(min_members=2, max_members=4), (2, 4)),
        (rendezvous(min_members=4), (4, 4)),
    ],
)
def test_bounds_come_from_the_list_unless_given(change: Change, bounds: tuple[int, int]) -> None:
    assert member_bounds(change(SPEC)) == bounds


def test_an_exception_overrides_the_local_world_size() -> None:
    some = replace(ROLE, local_world_size=2, local_world_size_by_node={"b": LocalWorldSizeRule.CPU})
    assert local_world_size_of(some, "a") == 2
    assert local_world_size_of(some, "b") is LocalWorldSizeRule.CPU


@given(
    run_id=st.text(max_size=140),
    node=st.text(max_size=20),
    argument=st.text(max_size=20),
    env=st.text(max_size=9),
)
def test_any_text_is_accepted_or_refused_by_name(run_id: str, node: str, argument: str, env: str) -> None:
    spec = command(arguments=(argument,))(role(env={env: env})(replace(SPEC, run_id=run_id, nodes=(node,))))
    refusal = _refusal(spec)
    assert refusal is not None or "/" not in run_id
    assert refusal is not None or "\0" not in argument
    assert refusal is None or refusal.facts["field"]


def _refusal(spec: RunSpec) -> InvalidSpec | None:
    try:
        validate(spec)
    except InvalidSpec as refusal:
        return refusal
    return None
