# SPDX-License-Identifier: Apache-2.0
"""Demanding that modelled time was kept, and saying why it was not.

A machine can be too slow or too busy for what is modelled. Then operations are late, and what a program measured says something
about the machine and nothing about the fabric. `shortfalls` tells the two apart:

    with fabrex.fidelity.Disturbance() as disturbance:
        measured = experiment(fabric)
    for fault in fabrex.fidelity.shortfalls(fabric.fidelity(), late=0.01, by="1us", disturbance=disturbance):
        print("inconclusive:", fault)

Owns: demands, and what disturbed a run. Must not know: the core, tests.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InvalidArgument
from .units import format_time, parse_time

__all__ = ["Disturbance", "shortfalls"]


@dataclass
class Disturbance:
    """What kept the processors from this process, as a context.

    Attributes:
        stolen_fraction: share of all processors' time that the hypervisor gave to others.
        descheduled: how often the kernel took the processor from this process.
        load_average: at the end, of the last minute.
        seconds: it lasted.
    """

    stolen_fraction: float = 0.0
    descheduled: int = 0
    load_average: float = 0.0
    seconds: float = 0.0
    _before: tuple[float, float, float, float] = field(default=(0.0, 0.0, 0.0, 0.0), repr=False)

    def __enter__(self) -> Disturbance:
        self._before = self._look()
        return self

    def __exit__(self, *_: object) -> None:
        self.update()

    def update(self) -> None:
        """Bring the attributes up to date."""
        total, stolen, switches, seconds = (b - a for a, b in zip(self._before, self._look(), strict=True))
        self.stolen_fraction = round(stolen / total, 6) if total > 0 else 0.0
        self.descheduled = int(switches)
        self.load_average = round(os.getloadavg()[0], 2)
        self.seconds = round(seconds, 1)

    @staticmethod
    def _look() -> tuple[float, float, float, float]:
        try:
            first = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        except (OSError, ValueError):
            first = ""
        words = [int(word) for word in first.split()[1:9] if word.isdigit()]
        stolen = words[7] if len(words) > 7 else 0
        return sum(words), stolen, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, time.monotonic()

    def facts(self) -> dict[str, float]:
        """For JSON."""
        return {
            "stolen_fraction": self.stolen_fraction,
            "descheduled": self.descheduled,
            "load_average": self.load_average,
            "seconds": self.seconds,
        }


def _late(facts: Mapping[str, Any], by_ps: int) -> int:
    """Operations that were late by more than `by_ps`, to the next lower power of two."""
    if by_ps <= 0:
        return int(facts["late"])
    return sum(count for at_least, count in facts["histogram"].items() if 2 * at_least > by_ps)


def shortfalls(
    report: Mapping[str, Mapping[str, Any]],
    *,
    late: float = 0.01,
    by: str | int = 0,
    ops: Iterable[str] | None = None,
    disturbance: Disturbance | None = None,
) -> list[str]:
    """Say where modelled time was not kept as demanded.

    Args:
        report: what `Fabric.fidelity()` returned.
        late: share of the operations of a kind that may be late, 0 to 1.
        by: what counts as late: by more than this, a time as in topologies (`"1us"`) or ps. Lateness is known in powers of
            two of a picosecond, and what may be more counts.
        ops: kinds that matter, as `report` names them; all that were counted if None.
        disturbance: what else is known about the run; its words join the reasons.
    Returns:
        One sentence for each kind of operation that fell short, or was demanded and never happened; empty if all is well.
    """
    if isinstance(late, bool) or not isinstance(late, (int, float)) or not 0 <= late <= 1:
        raise InvalidArgument(f"late={late!r}: a share is between 0 and 1")
    by_ps = parse_time(by) if isinstance(by, str) else int(by)
    faults = []
    for op in list(report) if ops is None else ops:
        facts = report.get(op)
        if facts is None or not facts["count"]:
            faults.append(f"no {op} was timed, so nothing is known of any")
            continue
        found = _late(facts, by_ps)
        if found <= late * facts["count"]:
            continue
        share = {why: facts.get(why, 0) / facts["late"] if facts["late"] else 0.0 for why in ("preempted", "network")}
        reason = (
            f"in {share['preempted']:.0%} of the late ones the processor was taken away"
            if share["preempted"]
            else "the processor was not taken away"
        )
        if share["network"]:
            reason += f"; in {share['network']:.0%} the network between machines took longer than the modelled time"
        if disturbance is not None:
            reason += (
                f"; {disturbance.stolen_fraction:.1%} of the time was stolen by the hypervisor, load {disturbance.load_average:g}"
            )
        more = f" by more than {format_time(by_ps)}" if by_ps > 0 else ""
        faults.append(
            f"{found / facts['count']:.2%} of {facts['count']} {op} were late{more}, {late:.2%} demanded; "
            f"late ones by {format_time(int(float(format(facts['late_ps_mean'], '.3g'))))} on average ({reason})"
        )
    return faults
