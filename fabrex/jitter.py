# SPDX-License-Identifier: Apache-2.0
"""Delays that vary: from a topology's `jitter` to the table that the core samples.

Owns: what each distribution means, in integers. Must not know: random numbers (they are the core's, csrc/jitter.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

__all__ = ["WHOLE", "problem", "table"]

WHOLE: Final = 1 << 32
"""Shares are of this."""

_MILLION: Final = 10**6

# Quantiles: millionths of probability, and millionths of a standard deviation below the mean (the other half is its mirror).
# fmt: off
NORMAL: Final = (
    (1, 4753424), (10, 4264891), (100, 3719016), (500, 3290527), (1000, 3090232), (2500, 2807034), (5000, 2575829),
    (10000, 2326348), (15000, 2170090), (20000, 2053749), (30000, 1880794), (40000, 1750686), (50000, 1644854), (60000,
    1554774), (80000, 1405072), (100000, 1281552), (125000, 1150349), (150000, 1036433), (175000, 934589), (200000,
    841621), (225000, 755415), (250000, 674490), (275000, 597760), (300000, 524401), (325000, 453762), (350000, 385320),
    (375000, 318639), (400000, 253347), (425000, 189118), (450000, 125661), (475000, 62707), (500000, 0),
)
# fmt: on

# Millionths of probability, and of the mean: -ln(1 - p).
# fmt: off
EXPONENTIAL: Final = (
    (0, 0), (10000, 10050), (20000, 20203), (30000, 30459), (40000, 40822), (50000, 51293), (70000, 72571), (100000,
    105361), (130000, 139262), (160000, 174353), (200000, 223144), (240000, 274437), (280000, 328504), (320000, 385662),
    (360000, 446287), (400000, 510826), (440000, 579818), (480000, 653926), (520000, 733969), (560000, 820981), (600000,
    916291), (640000, 1021651), (680000, 1139434), (720000, 1272966), (750000, 1386294), (780000, 1514128), (810000,
    1660731), (840000, 1832581), (860000, 1966113), (880000, 2120264), (900000, 2302585), (915000, 2465104), (930000,
    2659260), (940000, 2813411), (950000, 2995732), (960000, 3218876), (970000, 3506558), (975000, 3688879), (980000,
    3912023), (985000, 4199705), (990000, 4605170), (992500, 4892852), (995000, 5298317), (996500, 5654992), (998000,
    6214608), (999000, 6907755), (999300, 7264430), (999600, 7824046), (999800, 8517193), (999900, 9210340), (999960,
    10126631), (999990, 11512925), (999995, 12206073), (999999, 13815511),
)
# fmt: on

_NEEDED: Final[Mapping[str, tuple[str, ...]]] = {
    "uniform": ("max_ps",),
    "normal": ("mean_ps", "deviation_ps"),
    "exponential": ("mean_ps",),
    "empirical": ("points",),
}
_ALLOWED: Final[Mapping[str, tuple[str, ...]]] = {
    "uniform": ("min_ps", "max_ps"),
    "normal": ("min_ps", "max_ps", "mean_ps", "deviation_ps"),
    "exponential": ("min_ps", "max_ps", "mean_ps"),
    "empirical": ("min_ps", "max_ps", "points"),
}


def problem(jitter: Mapping[str, Any]) -> str | None:
    """What is wrong with a distribution, in words; None if nothing is."""
    kind = str(jitter.get("distribution"))
    if kind not in _NEEDED:
        return None  # said already
    missing = [key.removesuffix("_ps") for key in _NEEDED[kind] if not jitter.get(key) and jitter.get(key) != 0]
    if missing:
        return f"a distribution that is {kind} needs {' and '.join(missing)}"
    foreign = [key.removesuffix("_ps") for key in jitter if key != "distribution" and key not in _ALLOWED[kind]]
    if foreign:
        return (
            f"a distribution that is {kind} has no {foreign[0]}; it has {', '.join(k.removesuffix('_ps') for k in _ALLOWED[kind])}"
        )
    low, high = jitter.get("min_ps", 0), jitter.get("max_ps")
    if high is not None and high < low:
        return "max is less than min"
    if kind == "exponential" and jitter["mean_ps"] < low:
        return "the mean is less than min"
    if kind == "empirical":
        points = _percentiles(jitter["points"])
        if len(points) > 200:
            return f"{len(points)} points are too many; allowed: 200"
        for (share, ps), (_, after) in pairwise(points):
            if after < ps:
                return f"the delay falls after p{float(100 * share):g}; it has to rise with the percentile"
        if points[0][1] < low or (high is not None and points[-1][1] > high):
            return "a point lies outside min and max"
    return None


def _percentiles(points: Mapping[str, int]) -> list[tuple[Fraction, int]]:
    return sorted((Fraction(name[1:]) / 100, ps) for name, ps in points.items())


def _scaled(value: int, millionths: int) -> int:
    return (value * millionths + _MILLION // 2) // _MILLION


def table(jitter: Mapping[str, Any] | None) -> list[tuple[int, int]]:
    """Return points of the distribution function: shares of 2**32, and the delay in ps that they stay below; [] for None.

    What lies below `min` or above `max` is set to it. A normal or exponential distribution ends at one in a million.
    """
    if jitter is None:
        return []
    low, high = jitter.get("min_ps", 0), jitter.get("max_ps")
    match jitter["distribution"]:
        case "uniform":
            found = [(Fraction(0), low), (Fraction(1), high)]
        case "normal":
            mean, deviation = jitter["mean_ps"], jitter["deviation_ps"]
            below = [(Fraction(p, _MILLION), mean - _scaled(deviation, z)) for p, z in NORMAL]
            above = [(1 - share, 2 * mean - ps) for share, ps in reversed(below[:-1])]
            found = [(Fraction(0), below[0][1]), *below, *above, (Fraction(1), above[-1][1])]
        case "exponential":
            excess = jitter["mean_ps"] - low
            found = [(Fraction(p, _MILLION), low + _scaled(excess, x)) for p, x in EXPONENTIAL]
            found.append((Fraction(1), found[-1][1]))
        case _:
            found = _percentiles(jitter["points"])
            if found[0][0] > 0:
                found.insert(0, (Fraction(0), min(low, found[0][1])))
            if found[-1][0] < 1:
                found.append((Fraction(1), found[-1][1] if high is None else high))
    points: list[tuple[int, int]] = []
    for share, ps in found:
        at = int(share * WHOLE)
        if not points or at > points[-1][0]:
            points.append((at, max(low, min(ps, high) if high is not None else ps)))
    return points
