# SPDX-License-Identifier: Apache-2.0
"""The core's adversary against the catalogue: never what the rules forbid. `make campaign-ordering` does many more seeds."""

from __future__ import annotations

import pytest

from .adversary import CANNOT, can, shows
from .catalogue import Litmus, everything

SEEDS = range(20)
ABLE = [test for test in everything() if can(test)]


@pytest.mark.parametrize("test", ABLE, ids=[test.name for test in ABLE])
def test_adversary_shows_only_what_is_allowed(test: Litmus) -> None:
    found = shows(test, SEEDS)
    forbidden = {outcome: seed for outcome, seed in found.items() if outcome not in test.allowed}
    assert not forbidden, f"outcome -> seed: {forbidden}; rules {', '.join(test.rules)}"


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_run_still_cannot(name: str) -> None:
    """So that the list of exceptions does not outlive its reasons."""
    (test,) = (test for test in everything() if test.name == name)
    with pytest.raises(Exception):  # noqa: B017 - a deadlock, or a call that is not known
        shows(test, range(1))
