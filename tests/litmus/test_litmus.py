# SPDX-License-Identifier: Apache-2.0
"""The exhaustive clock against the catalogue: exactly the outcomes that were written down, no more and no fewer."""

from __future__ import annotations

import pytest

from fabrex import sim

from .catalogue import Litmus, everything

ALL = everything()


@pytest.mark.parametrize("test", ALL, ids=[test.name for test in ALL])
def test_outcomes_are_those_that_the_rules_allow(test: Litmus) -> None:
    found = sim.explore(test.topology, test.programs, stale=test.stale)
    assert found.complete, found
    assert test.project(found.outcomes) == test.allowed
