# SPDX-License-Identifier: Apache-2.0
"""What a peer may scribble: random damage of the shared segment must end in an error of ours or in nothing, never in a signal."""

from __future__ import annotations

import contextlib
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Child, control_path, head, patch, persistent, table, topology

import fabrex

pytest_plugins = ["helpers"]

VICTIM = """
    import contextlib
    signal.alarm(60)
    def visit():
        fabric = fabrex.Fabric.open("lab")
        try:
            with contextlib.suppress(fabrex.FabricError):
                fabric.nodes(), fabric.fidelity(), [link.info() for link in fabric.links.values()], fabric.buffers()
            node = fabric.attach("host0", "client")
            gva = fabric.gva("host1")
            for attempt in (
                lambda: node.store(gva, 1), lambda: node.load(gva), lambda: node.write(gva + 64, bytes(5000)),
                lambda: node.read(gva + 64, 5000), lambda: node.fetch_add(gva, 1), lambda: node.flush(),
                lambda: node.alloc(4096, "n").free(), lambda: fabric.put("k", b"v"), lambda: fabric.get("k"),
                lambda: node.ntb.windows[1].set_translation("host1", 0, 65536), lambda: node.load(gva),
                lambda: bytes(node.view(gva, 64)), lambda: node.barrier("b", size=1), lambda: fabric.reap(),
            ):
                with contextlib.suppress(fabrex.FabricError):
                    attempt()
        finally:
            fabric.close()
    while True:
        turn = hear()
        try:
            visit()
            say(turn, "worked")
        except fabrex.FabricError as error:
            say(turn, error.code)
        except Exception as error:
            say(turn, repr(error))
"""


def _damage(
    place: Path, children: Callable[..., Child], changes: list[list[tuple[int, bytes]]], patience: float = 20, **how: Any
) -> None:
    """Visit the fabric with each set of changes in place; report those that kill the visitor or escape our errors."""
    fabrex.Fabric.create(topology(size="1MiB"), "lab", persistent=True, **{"timing": True, **how}).close()
    path, bad = control_path(), []
    whole, size = head(path), path.stat().st_size
    victim = children(VICTIM)
    for turn, change in enumerate(changes):
        for offset, data in change:
            patch(path, offset, data)
        victim.tell(turn)
        try:
            said = victim.hear(patience)
            if said[1] != "worked" and not said[1].isupper():
                bad.append((change, said[1]))
        except AssertionError as error:
            # Damaged rates and clocks may make modelled time stand still, which is not a crash.
            if "says nothing" not in str(error):
                bad.append((change, str(error)[-160:]))
            victim.end()
            victim = children(VICTIM)
        patch(path, 0, whole)  # header and the tables of nodes, regions, links and directions
        os.truncate(path, 65536)  # all that was used later is empty again
        os.truncate(path, size)
        for region in place.glob("*@r*"):
            length = region.stat().st_size
            os.truncate(region, 0)
            os.truncate(region, length)
    victim.end()
    fabrex.Fabric.destroy("lab", force=True)
    for path in place.iterdir():
        path.unlink()
    assert not bad, f"{len(bad)} of {len(changes)}: " + "; ".join(f"{[(o, d.hex()) for o, d in c]}: {e}" for c, e in bad[:6])


VALUES = (0, 1, 2, 0x7F, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@pytest.mark.parametrize(
    "part",
    [
        "header",
        "nodes",
        "regions",
        "links",
        "directions",
    ],
)
def test_damaged_words_of_what_is_written_once(place: Path, children: Callable[..., Child], part: str) -> None:
    noise = random.Random(part)
    with fabrex.Fabric.create(topology(size="1MiB"), "probe"):
        offset, stride, _, high = (0, 2048, 1, 1) if part == "header" else table(control_path("probe"), part)
    changes = []
    for _ in range(60):
        at = offset + noise.randrange(stride * high // 4) * 4
        kind = noise.choice("IQ")
        value = noise.choice((*VALUES, noise.getrandbits(64))) & ((1 << 32) - 1 if kind == "I" else (1 << 64) - 1)
        changes.append([(at, struct.pack("<" + kind, value))])
    _damage(place, children, changes, patience=2 if part in ("header", "directions") else 20)


COUNTED_TICKS = 192 - 16
"""Where the clock of a fabric without time is in the header."""


def test_a_damaged_counted_clock(place: Path, children: Callable[..., Child]) -> None:
    """Time that jumps, or stands at what no fabric has come to."""
    noise = random.Random("counted")
    changes = [[(COUNTED_TICKS, struct.pack("<Q", value))] for value in (*VALUES, 1 << 53, 1 << 54, 922337203685477)]
    for _ in range(30):
        changes.append([(noise.randrange(8, COUNTED_TICKS, 4), struct.pack("<I", noise.choice(VALUES) & 0xFFFFFFFF))])
    _damage(place, children, changes, patience=2, timing=False, ordering="adversarial")


def test_the_counted_clock_jumps_under_a_waiter(place: Path) -> None:
    """What waits is due then, and nothing is lost."""
    with (
        fabrex.Fabric.create(topology(size="1MiB"), "lab", timing=False, ordering="adversarial") as fabric,
        fabric.attach("host0") as near,
    ):
        gva = fabric.gva("host1", 64)
        for ticks in (1 << 30, 1 << 40, 1 << 45):
            near.store(gva, ticks)
            patch(control_path("lab"), COUNTED_TICKS, struct.pack("<Q", ticks))
            assert fabric.now_ps >= ticks * 20_000, "it is the clock that was damaged"
            near.flush()
            assert near.load(gva) == ticks


def test_an_access_width_of_zero(place: Path, children: Callable[..., Child]) -> None:
    with fabrex.Fabric.create(topology(size="1MiB"), "probe"):
        offset, stride, _, high = table(control_path("probe"), "nodes")
    access = 64 + 8 * 4  # name, kind, profile, first_region, region_count, rank, machine, delay_ps
    _damage(place, children, [[(offset + stride * i + access, bytes(4)) for i in range(high)]])


def test_garbage_in_queues_and_marks_is_reset_and_counted(place: Path) -> None:
    """Scribble over the tail and head of a posted queue of a live fabric."""
    with persistent(topology(), timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        gva = fabric.gva("host1")
        h0.store(gva, 1)
        h0.flush()
        noise = random.Random(9)
        with control_path().open("rb") as file:
            start = max(table(control_path(), name)[0] for name in ("names", "buffers")) + 131072 * 128
            start = (start + 4095) // 4096 * 4096
            file.seek(start)
            heap = file.read(1 << 18)
        used = [i for i in range(0, len(heap), 8) if heap[i : i + 8] != bytes(8)]
        assert used, "the heap of the control segment was not found"
        for _ in range(200):
            patch(control_path(), start + noise.choice(used), noise.randbytes(8))
            for attempt in (
                lambda: h0.begin("store", gva, 5),
                lambda: h1.progress(),
                lambda: h1.load(gva),
                lambda: fabric.info(),
            ):
                with contextlib.suppress(fabrex.FabricError):
                    attempt()
        assert fabric.info()["name"] == "lab"


@pytest.mark.parametrize("argument", [None, 5, b"bytes", [], 1.5, object()])
def test_arguments_of_the_wrong_type(place: Path, argument: object) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric, fabric.attach("host0") as node:
        gva = fabric.gva("host1")
        for attempt in (
            lambda: fabrex.Fabric.open(argument),
            lambda: fabric.attach(argument),
            lambda: fabric.put(argument, b""),
            lambda: fabric.buffer(argument),
            lambda: node.alloc("large"),
            lambda: node.store(gva, b"x"),
            lambda: node.load(gva, size="8"),
            lambda: node.load(gva, wide=8),
            lambda: node.load(),
            lambda: node.load(gva, 8, 8),
            lambda: node.store(gva),
            lambda: node.store(gva, 1, tc=8),
            lambda: node.flush(argument) if argument is not None else node.flush("nobody"),
            lambda: node.wait_until(gva, argument, 1),
        ):
            with pytest.raises((TypeError, ValueError, LookupError, AttributeError, OverflowError, fabrex.FabricError)):
                attempt()
        assert node.load(gva) == 0
