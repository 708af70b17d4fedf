# SPDX-License-Identifier: Apache-2.0
"""The ordering rules, each with a name that stays: what may pass what, as functions of two packets.

This is the one place where the exhaustive clock gets its answers from, and it is written from the specification's table and not
from the core: the two are compared by the litmus suite. Nothing here knows memory, programs or time.

The first letter and digit of a rule of the PCIe table are row and column, as the base specification prints them: A posted
request, B read request, C non-posted request with data, D completion; 2 posted, 3 read, 4 with data, 5 completion. `a` is the
rule, `b` its exception.
"""

from __future__ import annotations

from typing import NamedTuple

POSTED, READ, ATOMIC, COMPLETION = "posted", "read", "atomic", "completion"

RULES: dict[str, str] = {
    # One stream: one source, target, path and traffic class.
    "A2a": "a posted write does not pass an earlier posted write of its stream",
    "A2b": "a posted write may pass an earlier one of its stream if it has RO, or IDO and another requester id",
    "A3": "a posted write passes earlier reads, and must be able to",
    "A4": "a posted write passes earlier atomics, and must be able to",
    "A5": "a posted write may pass earlier completions",
    "B2a": "a read does not pass an earlier posted write of its stream: it pushes it",
    "B2b": "a read may pass an earlier posted write if it has IDO and another requester id",
    "B3": "reads may pass earlier reads and atomics",
    "C2a": "an atomic does not pass an earlier posted write of its stream: it pushes it",
    "C2b": "an atomic may pass an earlier posted write if it has RO, or IDO and another requester id",
    "C3": "atomics may pass earlier reads and atomics",
    "D2a": "a completion does not pass a posted write that travels the same way: it pushes it",
    "D2b": "a completion may pass a posted write if its request had RO, or IDO and the write another requester id",
    "D5": "completions of different requests may pass each other",
    # Time.
    "V1": "a posted write becomes visible some time after its call has returned",
    # Between streams.
    "T1": "different traffic classes are unordered",
    "P1": "different paths between the same two nodes are unordered",
    "P2": "writes to different nodes are unordered",
    "P3": "writes of different nodes are unordered",
    # What one packet is made of.
    "G1": "aligned 8 bytes are read and written as one; more are not",
    "G2": "one write without RO becomes visible in increasing addresses (combined: each line of it); with RO in any order",
    "G3": "a read samples its 8-byte words in any order",
    "G4": "an atomic happens once and as one at its target",
    # The processor.
    "L1": "a node's accesses to its own memory take effect at once and in program order",
    "W1": "what is in write-combining buffers leaves line by line and in any order, full lines too, until something drains it",
    "W2": "stores to the same aligned 8 bytes, and the words of one call in one line, are not reordered by write combining",
    "W3": "reads, atomics, doorbells, scratchpads, DMA submissions, flush and fence drain their handle's buffers",
    # The calls that order.
    "X1": "drain: write-combined stores before it do not become visible after later writes of their stream",
    "X2": "flush: the node's earlier posted writes to the target are visible when it returns",
    "X3": "fence: no later posted write of this handle becomes visible before its earlier ones, whatever the target",
    "X4": "a barrier orders the programs and no write",
    # Raw views.
    "R1": "a raw view shows what acquire found, and others see what release gave back, at once; nothing else orders it",
    # DMA.
    "M1": "a DMA operation runs beside the program: until it is complete nothing orders the two",
    "M2": "DMA complete: the source may be used again and the last write has been issued; it need not be visible",
    "M3": "DMA complete with visible=True: all of it is visible",
    "M4": "put_signal: the signal is not visible before the data",
    "M5": "operations of one channel follow one another; those of different channels do not",
    # Caches without coherence.
    "S1": "a caching node may see what remote memory held at any time since it last invalidated or read it there",
    "S2": "a caching node's stores leave when their line does, in any order; writeback makes them leave",
}


class Tlp(NamedTuple):
    """What the rules look at in one packet.

    Attributes:
        kind: POSTED, READ, ATOMIC or COMPLETION.
        source, target: node indices, in the direction of travel.
        path: which of the ways between the two.
        tc: traffic class.
        ro, ido: its ordering attributes.
        requester: who issued it (for a completion: who completes).
    """

    kind: str
    source: int
    target: int
    path: int
    tc: int
    ro: bool
    ido: bool
    requester: tuple[int, ...]


def same_stream(a: Tlp, b: Tlp) -> bool:
    """Return whether two packets travel the same way in the same class: only then the table says anything."""
    return a.source == b.source and a.target == b.target and a.path == b.path and a.tc == b.tc


def waits(later: Tlp, earlier: Tlp) -> bool:
    """Return whether `later` must stay behind `earlier`, a posted write issued before it.

    Nothing ever waits for reads, atomics or completions: those cells of the table are "may" or "must be able to".
    """
    if earlier.kind != POSTED or not same_stream(later, earlier):
        return False
    if later.ido and later.requester != earlier.requester:
        return False
    return later.kind == READ or not later.ro


def passed_by(later: Tlp, earlier: Tlp) -> str:
    """Return the rule by which `later` may pass the posted write `earlier`, given that it may."""
    if later.source != earlier.source:
        return "P3"
    if later.target != earlier.target:
        return "P2"
    if later.path != earlier.path:
        return "P1"
    if later.tc != earlier.tc:
        return "T1"
    return {POSTED: "A2b", READ: "B2b", ATOMIC: "C2b", COMPLETION: "D2b"}[later.kind]


__all__ = ["ATOMIC", "COMPLETION", "POSTED", "READ", "RULES", "Tlp", "passed_by", "same_stream", "waits"]
