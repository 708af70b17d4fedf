# SPDX-License-Identifier: Apache-2.0
"""The core's adversary against the catalogue: never what the rules forbid. `make campaign-ordering` does many more seeds."""

from __future__ import annotations

import pytest

from . import random_programs
from .adversary import shows
from .catalogue import Litmus, everything

SEEDS = range(20)
ALL = everything()


@pytest.mark.parametrize("test", ALL, ids=[test.name for test in ALL])
def test_adversary_shows_only_what_is_allowed(test: Litmus) -> None:
    found = shows(test, SEEDS)
    forbidden = {outcome: seed for outcome, seed in found.items() if outcome not in test.allowed}
    assert not forbidden, f"outcome -> seed: {forbidden}; rules {', '.join(test.rules)}"


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_random_programs_show_only_what_is_allowed(start: int) -> None:
    for number in range(start, start + 20):
        forbidden, said = random_programs.against_core(number, range(8))
        assert not forbidden, said
