"""What a session makes of a hub that is away, by its own clock."""

from __future__ import annotations

from agentd.api.errors import NodeIdTaken, Unreachable
from agentd.hub.away import FIRST_BACKOFF, LAST_BACKOFF, HubAway


def away(hub_timeout: float = 60.0) -> HubAway:
    return HubAway(hub_timeout, lambda _fewest, most: most)


def test_it_is_tried_again_at_once_and_then_ever_less_often_until_it_is_found() -> None:
    hub = away()
    pauses = [hub.pause() for _ in range(8)]
    assert pauses[:2] == [FIRST_BACKOFF, 2 * FIRST_BACKOFF]
    assert pauses[-1] == LAST_BACKOFF
    hub.found()
    assert hub.pause() == FIRST_BACKOFF


def test_its_loss_is_news_once_and_so_is_that_it_is_found() -> None:
    hub = away()
    assert not hub.found()
    hub.heard(10.0)
    assert (hub.lost(), hub.lost()) == (True, False)
    assert hub.silence(14.0) == 4.0
    assert (hub.found(), hub.found()) == (True, False)


def test_only_need_counts_and_it_begins_anew_with_each_need() -> None:
    hub = away(hub_timeout=60.0)
    assert hub.waited_in_vain(0.0, needed=False) is None
    assert hub.waited_in_vain(100.0, needed=True) is None
    assert hub.waited_in_vain(150.0, needed=False) is None
    assert hub.waited_in_vain(151.0, needed=True) is None
    assert hub.waited_in_vain(210.0, needed=True) is None
    assert hub.waited_in_vain(211.0, needed=True) == 60.0


def test_a_node_id_that_is_taken_is_waited_for_as_long_as_the_hub_said_first() -> None:
    hub = away()
    taken = NodeIdTaken("a", "new:1", "old:1", held_s=5.0, gone=True)
    assert hub.may_yet_take_us(taken, 100.0)
    assert hub.may_yet_take_us(taken, 105.0)
    assert not hub.may_yet_take_us(taken, 105.0 + 2 * LAST_BACKOFF)
    hub.found()
    assert hub.may_yet_take_us(taken, 200.0)
    assert not hub.may_yet_take_us(Unreachable("a:1"), 200.0)
