"""The node's conditions: one book of what degrades it, and since when.

Whoever notices a condition raises it here and lowers it when its cause is gone. What has a truth of its own,
such as the journal, is a source and is asked at each look. Used on the event loop only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from agentd.core.conditions import NEXT_STEP, NOT_READY, REFUSES_RUNS, Condition
from agentd.core.moments import utc
from agentd.quickdata import dataclass

Source = Callable[[], Mapping[str, str]]
"""What degrades the node in the eyes of one part: a sentence by the name of the condition."""

_log = logging.getLogger(__name__)
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Standing:
    sentence: str
    since: str

    @property
    def detail(self) -> str:
        return f"{self.sentence} (since {self.since})"


class Conditions:
    """What stands now. Its listeners are called when that is another set or another sentence."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._raised: dict[str, str] = {}
        self._sources: list[Source] = []
        self._standing: dict[str, _Standing] = {}
        self._listeners: list[Callable[[], object]] = []
        self._diaries: list[Callable[[str, str], object]] = []
        self._details: Mapping[str, str] = _NOTHING

    def add_source(self, source: Source) -> None:
        """Ask `source` at each look."""
        self._sources.append(source)

    def on_change(self, listener: Callable[[], object]) -> None:
        """Call `listener()` after each change that a look found."""
        self._listeners.append(listener)

    def on_turn(self, listener: Callable[[str, str], object]) -> None:
        """Call `listener(name, sentence)` when a condition begins, with an empty sentence when it is over."""
        self._diaries.append(listener)

    def put(self, condition: Condition, sentence: str) -> None:
        """The condition stands; an empty sentence: it does no longer."""
        if sentence:
            self._raised[condition.value] = sentence
        else:
            self._raised.pop(condition.value, None)
        self.look()

    @property
    def details(self) -> Mapping[str, str]:
        """What stood at the last look: a sentence with its time, by the name of the condition."""
        return self._details

    def look(self) -> Mapping[str, str]:
        """What stands now, as `details`."""
        found: dict[str, str] = {}
        for source in self._sources:
            found.update(source())
        found.update(self._raised)
        if found.keys() == self._standing.keys() and all(
            self._standing[name].sentence == sentence for name, sentence in found.items()
        ):
            return self._details
        self._change(found)
        return self._details

    @property
    def ready(self) -> bool:
        """Whether nothing stands for which a load balancer should look elsewhere."""
        return self.look().keys().isdisjoint(NOT_READY)

    @property
    def refusal(self) -> tuple[str, str, str]:
        """Why a new run is refused: name, sentence, next step. Empty texts: it is not."""
        standing = self.look()
        for condition in Condition:
            if condition in REFUSES_RUNS and condition.value in standing:
                return condition.value, standing[condition.value], NEXT_STEP[condition]
        return "", "", ""

    def _change(self, found: Mapping[str, str]) -> None:
        now = utc(self._wall_clock())
        for name in self._standing.keys() - found.keys():
            _log.info("%s is over", name, extra={"condition": name})
            self._tell(name, "")
        for name in found.keys() - self._standing.keys():
            _log.warning("%s: %s", name, found[name], extra={"condition": name})
            self._tell(name, found[name])
        self._standing = {
            name: _Standing(sentence, self._standing[name].since if name in self._standing else now)
            for name, sentence in found.items()
        }
        self._details = MappingProxyType({name: each.detail for name, each in self._standing.items()})
        for listener in self._listeners:
            listener()

    def _tell(self, name: str, sentence: str) -> None:
        for diary in self._diaries:
            diary(name, sentence)
