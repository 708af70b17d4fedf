# SPDX-License-Identifier: Apache-2.0
"""From what was measured of an operation to the figures that are shown of it: the one place that does it.

A measured row is plain data, as a receipt keeps it: what was measured, `requested_ps`, `rounds` (a histogram each), `floor` (the
same of the idle machine, or None), `count`, `late`, `preempted`, `counted`. The table, the card, the JSON and a receipt that is
verified a year later all ask here.

Owns: the figures and the verdict. Must not know: how either is shown, or where rows come from.
"""

from __future__ import annotations

import math
from typing import Any

from .histogram import Histogram
from .measure import BULK

__all__ = ["TOLERANCE", "figures", "key_of", "title"]

TOLERANCE = 0.02
"""A median this near what was asked for is as asked for; or one step of the clock near, where that is more."""


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two rows the same measurement."""
    return tuple(row[word] for word in ("topology", "ordering", "timing", "op", "size", "api"))


def title(row: dict[str, Any]) -> str:
    """A row's operation and size."""
    from . import output

    return f"{row['op']} {output.size(row['size'])}" if row["size"] else str(row["op"])


def _share(part: int | None, whole: int) -> float | None:
    return round(part / whole, 6) if part is not None and whole else None


def figures(row: dict[str, Any], step_ns: float = 0.0) -> dict[str, Any]:
    """The figures of a measured row.

    Args:
        step_ns: what the machine's clock moves by.
    Returns:
        requested_ns, p50_ns, p99_ns, p999_ns, late and preempted (fractions of the operations), floor_ns, bytes_per_s, per_s (of
        what is queued), and of timed rows `error` (the median's relative distance from what was requested), `claim` and
        `dilation`. `claim` is "kept", "missed", or "below floor": less was requested than the idle machine needs, so there is
        no error to speak of, and `dilation` is the factor of time at which there would be. None: nothing was requested.
    """
    samples = Histogram.merged(Histogram.from_json(part) for part in row["rounds"])
    requested = row["requested_ps"] / 1e3
    p50 = samples.percentile_ns(0.5)
    floor = None
    if row["floor"]:
        floor = Histogram.merged(Histogram.from_json(part) for part in row["floor"]).percentile_ns(0.5)
    error = claim = dilation = None
    if row["timing"] == "on" and requested > 0:
        if floor is not None and requested < floor:
            claim = "below floor"
            dilation = math.ceil(1.1 * floor / requested)
        else:
            error = round(p50 / requested - 1, 6)
            claim = "kept" if abs(p50 - requested) <= max(TOLERANCE * requested, step_ns) else "missed"
    return {
        "requested_ns": requested,
        "p50_ns": p50,
        "p99_ns": samples.percentile_ns(0.99),
        "p999_ns": samples.percentile_ns(0.999),
        "late": _share(row["late"], row["counted"]),
        "preempted": _share(row["preempted"], row["counted"]),
        "count": row["count"],
        "samples": len(samples),
        "floor_ns": floor,
        "bytes_per_s": round(row["size"] / p50 * 1e9) if row["op"] in BULK and p50 > 0 else None,
        "per_s": round(1e9 / p50) if row["op"] == "dma_queue" and p50 > 0 else None,
        "error": error,
        "claim": claim,
        "dilation": dilation,
    }
