"""A storm of faults over a fleet of real processes. `make chaos` has one for as long as one wants.

A storm is a function of its seed, up to the timing of the machine: have it again with the seed it prints.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.e2e.chaos.plan import FORKING, KINDS, Forking, Kind
from tests.e2e.chaos.storm import Outcome, Wish, storm

pytestmark = [pytest.mark.root, pytest.mark.netns]

CI_SEED = 4
FAULTS_A_STORM = 500
"""More are several storms: what is found is soon had again."""


def survive(wish: Wish, root: Path) -> Outcome:
    """Have the storm; what is wrong is told with all that is needed to have it again."""
    outcome = asyncio.run(storm(wish, root))
    print(outcome.summary(wish.seed))
    if outcome.violations:
        kept = 60
        story = [
            *("violations:", *outcome.violations[:20]),
            *(f"the last of {len(outcome.log)} lines of what happened:", *outcome.log[-kept:]),
            f"all of it: {root}/storm.log; what agentds said: {root}/n*/agentd.log",
            f"again: make chaos SEED={wish.seed} FAULTS={wish.faults} PRELOAD={_word_for(wish.forking)}",
        ]
        pytest.fail("\n".join(story), pytrace=False)
    return outcome


def _word_for(forking: Forking) -> str:
    return next(word for word, meant in FORKING.items() if meant == forking)


@pytest.mark.timeout(400)
def test_two_hundred_faults_break_no_promise(tmp_path: Path) -> None:
    outcome = survive(Wish(seed=CI_SEED), tmp_path)
    assert sum(outcome.survived.values()) >= 200


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_storms_as_asked_for(tmp_path: Path) -> None:
    """By SEED, FAULTS or MINUTES, KINDS and PRELOAD of the environment: storm after storm, new fleets."""
    seed = int(os.environ.get("SEED") or random.randrange(1_000_000))
    minutes = float(os.environ.get("MINUTES") or 0)
    wanted = float(os.environ.get("FAULTS") or (math.inf if minutes else 1000))
    names = os.environ.get("KINDS", "").replace(",", " ").split()
    kinds = tuple(Kind[name] for name in names) or tuple(KINDS)
    forking = FORKING[os.environ.get("PRELOAD", "")]
    ends = time.monotonic() + minutes * 60 if minutes else math.inf
    survived = 0
    while survived < wanted and time.monotonic() < ends:
        root = tmp_path / str(seed)
        root.mkdir()
        print(f"seed {seed}", flush=True)
        count = int(min(wanted - survived, FAULTS_A_STORM))
        outcome = survive(Wish(seed=seed, faults=count, kinds=kinds, forking=forking), root)
        survived += sum(outcome.survived.values())
        shutil.rmtree(root)
        seed += 1
    print(f"{survived} faults survived")
