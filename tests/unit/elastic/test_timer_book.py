"""The timer book: which timers have run out, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.elastic.timer import book as books
from agentd.elastic.timer.book import TimerBook, deadly
from agentd.elastic.timer.wire import FileTimerRequest
from agentd.procs.identity import ProcessIdentity

WALL = 1_700_000_000.0


def acquire(
    book: TimerBook, pid: int, scope: str, after: float, *, now: float, wall: float = WALL, signal: int = 9
) -> bool:
    request = FileTimerRequest(pid, scope, wall + after, signal)
    return book.acquire(request, ProcessIdentity(pid, 1), now=now, wall_now=wall)


def scopes(found: dict[int, list[books.Timer]]) -> dict[int, list[str]]:
    return {pid: [timer.request.scope_id for timer in timers] for pid, timers in found.items()}


def test_a_timer_runs_out_when_its_time_is_up_and_not_before() -> None:
    book = TimerBook()
    acquire(book, 7, "step", 60, now=100.0)
    assert book.next_due() == 160.0
    assert book.expired(159.9) == {}
    assert scopes(book.expired(160.0)) == {7: ["step"]}


def test_a_wall_clock_that_jumps_after_receipt_changes_nothing() -> None:
    book = TimerBook()
    acquire(book, 7, "a", 60, now=100.0, wall=WALL)
    acquire(book, 7, "b", 60, now=101.0, wall=WALL + 86_400)
    assert scopes(book.expired(160.5)) == {7: ["a"]}
    assert scopes(book.expired(161.0)) == {7: ["a", "b"]}


def test_acquiring_again_replaces_and_releasing_drops() -> None:
    book = TimerBook()
    acquire(book, 7, "step", 1, now=0.0)
    acquire(book, 7, "step", 100, now=0.5)
    assert book.expired(50.0) == {}
    book.release(7, "step")
    book.release(7, "never set")
    assert len(book) == 0
    assert book.next_due() == float("inf")


def test_one_process_does_not_release_the_timer_of_another() -> None:
    book = TimerBook()
    acquire(book, 7, "step", 1, now=0.0)
    book.release(8, "step")
    assert scopes(book.expired(2.0)) == {7: ["step"]}


def test_expired_timers_come_in_the_order_of_their_ends() -> None:
    book = TimerBook()
    for scope, after in (("late", 3), ("early", 1), ("middle", 2)):
        acquire(book, 7, scope, after, now=0.0)
    assert scopes(book.expired(10.0)) == {7: ["early", "middle", "late"]}


def test_the_first_timer_that_names_a_signal_kills_and_later_ones_are_not_told() -> None:
    book = TimerBook()
    for scope, after, signal in (("tell", 1, 0), ("kill", 2, 15), ("also", 3, 9)):
        acquire(book, 7, scope, after, now=0.0, signal=signal)
    told, killer = deadly(book.expired(10.0)[7])
    assert [timer.request.scope_id for timer in told] == ["tell", "kill"]
    assert killer is told[-1]


def test_timers_without_a_signal_kill_nobody_and_are_all_told() -> None:
    book = TimerBook()
    for scope, signal in (("a", 0), ("b", -1)):
        acquire(book, 7, scope, 1, now=0.0, signal=signal)
    told, killer = deadly(book.expired(10.0)[7])
    assert len(told) == 2
    assert killer is None


@pytest.mark.parametrize("after", [float("inf"), 1e300])
def test_a_timer_for_ever_never_runs_out(after: float) -> None:
    book = TimerBook()
    acquire(book, 7, "step", after, now=0.0)
    assert book.expired(1e12) == {}


def test_dropping_a_process_forgets_its_timers_and_no_others() -> None:
    book = TimerBook()
    for pid in (7, 8):
        acquire(book, pid, "a", 1, now=0.0)
        acquire(book, pid, "b", 1, now=0.0)
    book.drop({7})
    assert set(book.expired(2.0)) == {8}
    assert {timer.owner.pid for timer in book.timers} == {8}


def test_a_full_book_refuses_new_timers_and_still_replaces_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "MOST_TIMERS", 2)
    book = TimerBook()
    assert acquire(book, 7, "a", 1, now=0.0)
    assert acquire(book, 7, "b", 1, now=0.0)
    assert not acquire(book, 7, "c", 1, now=0.0)
    assert acquire(book, 7, "a", 50, now=0.0)
    assert scopes(book.expired(2.0)) == {7: ["b"]}


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["acquire", "release", "drop"]),
        st.integers(1, 3),
        st.sampled_from("ab"),
        st.integers(0, 20),
    )
)


@given(OPERATIONS)
def test_the_book_agrees_with_a_dictionary(operations: list[tuple[str, int, str, int]]) -> None:
    book, model = TimerBook(), {}
    for now, (operation, pid, scope, after) in enumerate(operations):
        if operation == "acquire":
            acquire(book, pid, scope, after, now=float(now))
            model[pid, scope] = float(now + after)
        elif operation == "release":
            book.release(pid, scope)
            model.pop((pid, scope), None)
        else:
            book.drop({pid})
            model = {key: due for key, due in model.items() if key[0] != pid}
        expired = {
            (pid, timer.request.scope_id) for pid, found in book.expired(now).items() for timer in found
        }
        assert expired == {key for key, due in model.items() if due <= now}
        assert book.next_due() == min(model.values(), default=float("inf"))
