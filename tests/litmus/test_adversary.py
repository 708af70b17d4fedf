# SPDX-License-Identifier: Apache-2.0
"""The core's adversary against the catalogue: never what the rules forbid. `make campaign-ordering` does many more seeds."""

from __future__ import annotations

import pytest

from . import random_programs
from .adversary import Runs, shows
from .catalogue import Litmus, everything

SEEDS = range(20)
ALL = everything()


@pytest.mark.parametrize("test", ALL, ids=[test.name for test in ALL])
def test_adversary_shows_only_what_is_allowed(test: Litmus) -> None:
    found = shows(test, SEEDS)
    forbidden = {outcome: seed for outcome, seed in found.items() if outcome not in test.allowed}
    assert not forbidden, f"outcome -> seed: {forbidden}; rules {', '.join(test.rules)}"


# The cells of PCIe's table, as far as programs can see them, and each with the tests that rest on it.
CELLS = {
    rule: [test for test in ALL if rule in test.rules]
    for rule in ("A2a", "A2b", "A3", "A4", "A5", "B2a", "B2b", "B3", "C2a", "C2b", "C3", "D2a", "D2b", "D5")
}
RUNS_A_CELL = 10_000


@pytest.mark.parametrize("rule", [rule for rule, tests in CELLS.items() if tests])
def test_ten_thousand_runs_of_a_cell(rule: str) -> None:
    """Forbidden outcomes never, and every allowed one some time, in seeds that the tests above do not use."""
    tests, never, missing = CELLS[rule], [], []
    each = -(-RUNS_A_CELL // len(tests))
    for test in tests:
        runs = Runs(test)
        runs.take(range(1000, 1000 + each))
        never += [(test.name, outcome, seed) for outcome, seed in runs.first.items() if outcome not in test.allowed]
        if each >= 1000:
            missing += [(test.name, outcome) for outcome in test.must - set(runs.first)]
    assert not never, f"forbidden: {never}"
    assert not missing, f"allowed and never seen in {each} runs: {missing}"


@pytest.mark.parametrize("start", range(0, 60, 20))
def test_random_programs_show_only_what_is_allowed(start: int) -> None:
    for number in range(start, start + 20):
        forbidden, said = random_programs.against_core(number, range(8))
        assert not forbidden, said
