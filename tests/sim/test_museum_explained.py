# SPDX-License-Identifier: Apache-2.0
"""Each bug of the museum, found by seed, made small and told: in at most twelve steps, with a reason."""

from __future__ import annotations

import pytest

pytest.importorskip("greenlet")

from museum.exhibits import EXHIBITS, Exhibit  # tests/ is on the path of packages in it

from fabrex.sim._explain import explain_case
from fabrex.sim._run import Result
from fabrex.sim._search import Case


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=[each.name for each in EXHIBITS])
def test_the_bug_explains_itself(exhibit: Exhibit) -> None:
    def check(result: Result) -> None:
        wrong = exhibit.check(result.returned)
        assert wrong is None, wrong

    case = Case(exhibit.topology, exhibit.buggy, check, "adversarial", {"stale": exhibit.stale})
    seed = next((seed for seed in range(1000) if case.attempt(seed).error is not None), None)
    assert seed is not None, "not found in 1,000 seeds"
    told = explain_case(case, seed)
    assert told is not None and told.minimal is not None
    assert 2 <= len(told.steps) <= 12 and told.reasons
    assert len(told.minimal.decisions) <= 4 and len(told.decisions) == len(told.minimal.decisions)
    assert any("exhibits.py" in step.source for step in told.steps)
    mended = Case(exhibit.topology, exhibit.mended, check, "adversarial", {"stale": exhibit.stale})
    assert all(mended.attempt(other).error is None for other in range(40))
