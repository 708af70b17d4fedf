# SPDX-License-Identifier: Apache-2.0
"""Samples as they are kept: each value that occurred, in ps, with how often it did.

A value keeps its twelve highest bits, so it is off by 1 in 8,192 at most; every figure that is printed is taken from here and
from nowhere else, so that whoever has the histogram gets the same figure. In JSON: `{"ps": [rising values], "n": [counts]}`.

Owns: rounding, percentiles, resampling. Must not know: what was measured.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["BITS", "Histogram", "interval", "ratio_interval"]

BITS = 12
RESAMPLES = 2000
CONFIDENCE = 0.95


def _rounded(ps: int) -> int:
    shift = ps.bit_length() - BITS
    return ps if shift <= 0 else (ps + (1 << shift >> 1)) >> shift << shift


class Histogram:
    """Values in ps, rising, and their counts.

    Raises:
        ValueError: they are not rising whole numbers from 0 with as many positive counts.
    """

    def __init__(self, values: Sequence[int], counts: Sequence[int]) -> None:
        self.values = list(values)
        self.counts = list(counts)
        whole = all(type(number) is int for number in [*self.values, *self.counts])
        if not whole or len(self.values) != len(self.counts) or any(count < 1 for count in self.counts):
            raise ValueError("a histogram is whole numbers, with a positive count for each value")
        if any(a >= b for a, b in itertools.pairwise([-1, *self.values])):
            raise ValueError("a histogram's values rise from 0")
        self._sums = list(itertools.accumulate(self.counts))

    @classmethod
    def of(cls, samples_ns: Iterable[float]) -> Histogram:
        """Count samples in ns."""
        found = Counter(_rounded(max(round(value * 1e3), 0)) for value in samples_ns)
        values = sorted(found)
        return cls(values, [found[value] for value in values])

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Histogram:
        """All of several."""
        found: Counter[int] = Counter()
        for part in parts:
            for value, count in zip(part.values, part.counts, strict=True):
                found[value] += count
        values = sorted(found)
        return cls(values, [found[value] for value in values])

    @classmethod
    def from_json(cls, found: Any) -> Histogram:
        """What `to_json` made. Raises ValueError."""
        if not isinstance(found, dict) or set(found) != {"ps", "n"} or not all(isinstance(v, list) for v in found.values()):
            raise ValueError('a histogram is {"ps": [...], "n": [...]}')
        return cls(found["ps"], found["n"])

    def to_json(self) -> dict[str, list[int]]:
        """For a file."""
        return {"ps": self.values, "n": self.counts}

    def __len__(self) -> int:
        return self._sums[-1] if self._sums else 0

    def percentile_ns(self, fraction: float) -> float:
        """The value below which `fraction` of the samples lies; NaN without samples."""
        if not self.values:
            return float("nan")
        rank = min(int(len(self) * fraction), len(self) - 1)
        return self.values[bisect.bisect_right(self._sums, rank)] / 1e3


def _medians(rounds: Sequence[Histogram], seed: str) -> list[float]:
    """Medians that other rounds of the same kind might have had: rounds are drawn, not samples.

    Samples of one round share the state of the machine, so thousands of them say little more than one does.
    """
    medians = [part.percentile_ns(0.5) for part in rounds if len(part)]
    if not medians:
        return []
    draw = random.Random(seed)
    size = len(medians)
    return [sorted(draw.choices(medians, k=size))[size // 2] for _ in range(RESAMPLES)]


def _middle(values: list[float]) -> tuple[float, float]:
    values.sort()
    edge = (1 - CONFIDENCE) / 2
    return values[int(len(values) * edge)], values[min(int(len(values) * (1 - edge)), len(values) - 1)]


def interval(rounds: Sequence[Histogram], seed: str) -> tuple[float, float] | None:
    """The interval in which 95 % of resampled medians lie, in ns; None with fewer than three rounds."""
    return _middle(_medians(rounds, seed)) if sum(1 for part in rounds if len(part)) >= 3 else None


def ratio_interval(first: Sequence[Histogram], second: Sequence[Histogram], seed: str) -> tuple[float, float] | None:
    """The same of the second's median divided by the first's."""
    if min(sum(1 for part in rounds if len(part)) for rounds in (first, second)) < 3:
        return None
    pairs = zip(_medians(first, seed + "/1"), _medians(second, seed + "/2"), strict=True)
    ratios = [b / a for a, b in pairs if a > 0]
    return _middle(ratios) if ratios else None
