# SPDX-License-Identifier: Apache-2.0
"""Every exhibit fails by the rule that it names, and does not once it is mended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from fabrex import sim

from .exhibits import EXHIBITS, Exhibit, Programs, complaints


def exhaustive(topology: Any, programs: Programs, stale: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Run under the exhaustive clock: one run per outcome."""
    found = sim.explore(topology, programs, stale=stale)
    assert found.complete, found
    for outcome in found.outcomes:
        yield dict(zip(found.nodes, outcome, strict=True))


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=[each.name for each in EXHIBITS])
def test_bug_is_found(exhibit: Exhibit) -> None:
    found = list(complaints(exhibit, exhibit.buggy, exhaustive))
    assert any(found), "it cannot happen"
    assert not all(found), "it always happens: nobody would have written it"


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=[each.name for each in EXHIBITS])
def test_mended_bug_is_gone(exhibit: Exhibit) -> None:
    assert not any(complaints(exhibit, exhibit.mended, exhaustive))


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=[each.name for each in EXHIBITS])
def test_witness_names_the_rule(exhibit: Exhibit) -> None:
    """At least one wrong outcome comes about by the rule that the exhibit is about."""
    found = sim.explore(exhibit.topology, exhibit.buggy, stale=exhibit.stale)
    rules: set[str] = set()
    for outcome in found.outcomes:
        if exhibit.check(dict(zip(found.nodes, outcome, strict=True))):
            rules |= found.witness(outcome).rules
    assert rules & set(exhibit.rules), rules
