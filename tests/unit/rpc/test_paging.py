"""Pages of runs."""

from __future__ import annotations

import pytest

from agentd.api.errors import InvalidSpec
from agentd.api.types import RunStatus
from agentd.rpc.paging import BYTES, LARGEST_SIZE, page


def runs(*names: str) -> list[RunStatus]:
    return [RunStatus(run_id=name, incarnation=1) for name in names]


def names_of(found: list[RunStatus]) -> list[str]:
    return [run.run_id for run in found]


def test_pages_put_together_are_all_runs_once() -> None:
    everything = runs(*(f"r{number:03}" for number in range(25)))
    seen, token, pages = [], "", 0
    while True:
        found, token = page(everything, size=10, token=token, cost=lambda run: 1)
        seen += names_of(found)
        pages += 1
        if not token:
            break
    assert seen == names_of(everything)
    assert pages == 3


def test_runs_that_come_and_go_between_pages_move_no_other() -> None:
    first, token = page(runs("b", "d", "f"), size=2, token="", cost=lambda run: 1)
    assert names_of(first) == ["b", "d"]
    second, token = page(runs("a", "d", "e", "f"), size=2, token=token, cost=lambda run: 1)
    assert names_of(second) == ["e", "f"]
    assert token == ""


def test_incarnations_of_one_run_are_runs_of_their_own() -> None:
    both = [RunStatus(run_id="r", incarnation=2), RunStatus(run_id="r", incarnation=1)]
    first, token = page(both, size=1, token="", cost=lambda run: 1)
    second, token = page(both, size=1, token=token, cost=lambda run: 1)
    assert [run.incarnation for run in (*first, *second)] == [1, 2]


def test_a_page_is_bounded_in_bytes_but_never_empty() -> None:
    found, token = page(runs("a", "b", "c"), size=0, token="", cost=lambda run: BYTES // 2)
    assert names_of(found) == ["a", "b"]
    found, token = page(runs("a", "b"), size=0, token="", cost=lambda run: BYTES * 2)
    assert names_of(found) == ["a"]
    assert token


def test_a_page_has_a_largest_size() -> None:
    many = runs(*(f"r{number:05}" for number in range(LARGEST_SIZE + 1)))
    assert len(page(many, size=1_000_000, token="", cost=lambda run: 0)[0]) == LARGEST_SIZE


@pytest.mark.parametrize("token", ["?", "bm90anNvbg==", "WzFd"])
def test_a_token_nobody_gave_is_refused(token: str) -> None:
    with pytest.raises(InvalidSpec, match="page_token"):
        page([], size=1, token=token, cost=lambda run: 1)
