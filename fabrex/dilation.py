# SPDX-License-Identifier: Apache-2.0
"""How far modelled time must be stretched so that this machine can keep up with a topology's rates.

Owns: what this machine copies, what a topology asks for, the factor between. Must not know: fabrics.
"""

from __future__ import annotations

import math
import mmap
import time
from fractions import Fraction

from .topology import Topology

__all__ = ["automatic", "copy_rate", "wanted_rate"]

_BYTES = 32 << 20  # larger than caches that one core has for itself
_ROUNDS = 4
_SHARE = Fraction(1, 2)
"""Of what a thread copies when it does nothing else: the engine also plans, waits, and copies what it pulls twice."""

_measured: list[float] = []


def copy_rate() -> float:
    """Bytes per second that one thread copies from memory to memory: the best of a few rounds, measured once a process."""
    if not _measured:
        with (
            mmap.mmap(-1, _BYTES) as here,
            mmap.mmap(-1, _BYTES) as there,
            memoryview(here) as source,
            memoryview(there) as sink,
        ):
            source[:: mmap.PAGESIZE] = bytes([1]) * len(source[:: mmap.PAGESIZE])  # no page is the zero page
            best = math.inf
            for _ in range(_ROUNDS):
                begin = time.perf_counter()
                sink[:] = source
                best = min(best, time.perf_counter() - begin)
        _measured.append(_BYTES / best)
    return _measured[0]


def wanted_rate(topology: Topology) -> float:
    """Payload bytes per second of the topology's fastest link, one way."""
    from .pcie import Link

    best = 0.0
    for link in topology.links.values():
        if link.ethernet is not None:
            rate = link.ethernet.rate_bps * link.ethernet.mtu / (link.ethernet.mtu + link.ethernet.overhead_bytes)
        else:
            assert link.pcie is not None
            rate = float(Link(gen=link.pcie.gen, lanes=link.pcie.lanes, mps=link.pcie.mps, mrrs=link.pcie.mrrs).write_bps(1 << 20))
        best = max(best, rate / 8)
    return best


def automatic(topology: Topology, copies: float | None = None) -> Fraction:
    """Return the factor with which one transfer at the rate of the fastest link fits what one thread copies here.

    wanted_rate / (copies / 2), rounded up to quarters, and at least 1.

    Args:
        copies: bytes per second; measured if left out.
    """
    able = (copy_rate() if copies is None else copies) * float(_SHARE)
    return max(Fraction(1), Fraction(math.ceil(4 * wanted_rate(topology) / able), 4))
