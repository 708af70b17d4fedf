# SPDX-License-Identifier: Apache-2.0
"""The adversary finds every bug of the museum, and nothing in what has been mended."""

from __future__ import annotations

import pytest

from .exhibits import EXHIBITS, Exhibit, complaints
from .seeds import first_failure, runner

NAMES = [each.name for each in EXHIBITS]


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=NAMES)
def test_adversary_finds_it(exhibit: Exhibit) -> None:
    assert first_failure(exhibit, exhibit.buggy, range(1000)) is not None


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=NAMES)
def test_adversary_finds_nothing_once_mended(exhibit: Exhibit) -> None:
    assert first_failure(exhibit, exhibit.mended, range(100)) is None


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=NAMES)
def test_it_works_where_writes_are_visible_at_once(exhibit: Exhibit) -> None:
    assert not any(complaints(exhibit, exhibit.buggy, runner("immediate", range(10))))
