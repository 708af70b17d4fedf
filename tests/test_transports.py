# SPDX-License-Identifier: Apache-2.0
"""One conformance suite for every way between two nodes: {transports} × {timing on, off} × {ordering modes}.

What it checks is what programs rely on; what a transport adds in time or speed is measured elsewhere. See transports.py for how
a transport joins.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from transports import TRANSPORTS, Remote

import fabrex

ORDERINGS = ("posted", "immediate", "adversarial")


class Bed:
    """host0's handle here, and a peer that acts as host1."""

    def __init__(self, fabric: fabrex.Fabric, near: fabrex.Node, far: Any, ordering: str) -> None:
        self.fabric, self.near, self.far, self.ordering = fabric, near, far, ordering
        self.there, self.here = fabric.gva("host1", 0), fabric.gva("host0", 0)


BEDS = [(t, timing, o) for t in TRANSPORTS for timing in ("on", "off") for o in ORDERINGS]


@pytest.fixture(params=BEDS, ids=lambda p: "-".join(p))
def bed(request: pytest.FixtureRequest) -> Iterator[Bed]:
    """Each combination once."""
    transport, timing, ordering = request.param
    with TRANSPORTS[transport].start(timing=timing, ordering=ordering) as (fabric, near, far):
        yield Bed(fabric, near, far, ordering)


def test_operations(bed: Bed) -> None:
    """All that a node does with a peer's memory, and what the peer sees of it. One test, because a bed costs more than it."""
    near, far, there = bed.near, bed.far, bed.there
    # scalars, in both directions
    for size in (1, 2, 4, 8):
        value = random.Random(size).getrandbits(8 * size)
        near.store(there + 64, value, size=size)
        assert near.load(there + 64, size=size) == value
        near.flush("host1")
        assert far.call("node.load", there + 64, size=size) == value
        far.call("node.store", bed.here + 64, value ^ 1, size=size)
        far.call("node.flush", "host0")
        assert near.load(bed.here + 64, size=size) == value ^ 1
    wide = bytes(range(64))
    near.begin("store", there + 128, wide, size=64).wait()
    assert near.load(there + 128, size=64) == wide
    # atomics return what was there
    near.store(there + 256, 40)
    assert near.fetch_add(there + 256, 2) == 40
    assert near.swap(there + 256, 7) == 42
    assert near.compare_swap(there + 256, 6, 1) == 7
    assert near.compare_swap(there + 256, 7, 1) == 7
    assert near.compare_swap(there + 256, 1, 1 << 100, size=16) == 1
    assert near.load(there + 264) == 1 << 36
    near.store(there + 256, (1 << 32) - 1, size=4)
    assert near.fetch_add(there + 256, 1, size=4) == (1 << 32) - 1
    # bulk: unaligned, over several pieces, both ways
    data = random.Random(5).randbytes(70_001)
    buffer = bed.fabric.from_handle(far.call("node.alloc", 100_000, name="inbox"))
    assert bed.fabric.buffer("inbox").gva == buffer.gva
    near.write(buffer.gva + 13, data)
    near.flush("host1", check=True)
    assert far.call("node.read", buffer.gva + 13, len(data)) == data
    assert near.read(buffer.gva + 13, len(data)) == data
    # many at once
    gvas = [buffer.gva + 4096 + 64 * i for i in range(200)]
    values = b"".join((i * i).to_bytes(8, "little") for i in range(200))
    near.scatter(gvas, values)
    near.flush("host1")
    out = bytearray(len(values))
    near.gather(gvas, out)
    assert bytes(out) == values
    # under way at the same time
    adds = [near.begin("fetch_add", there + 512, 1) for _ in range(100)]
    assert sorted(operation.wait() for operation in adds) == list(range(100))
    abandoned = [near.begin("load", there + 512) for _ in range(50)]
    del abandoned
    assert near.load(there + 512) == 100
    # a failure is the same class everywhere
    with pytest.raises(fabrex.AddressError):
        near.load(there + (1 << 39))
    with pytest.raises(fabrex.AddressError):
        near.write(bed.fabric.region_gva("host1", "dram", (32 << 20) - 8), bytes(16))
    with pytest.raises(fabrex.AlignmentError):
        near.load(there + 1)
    # the name goes with the buffer
    buffer.free()
    with pytest.raises(fabrex.FabricNotFound):
        bed.fabric.buffer("inbox")
    with pytest.raises(fabrex.StaleHandle):
        bed.fabric.from_handle(buffer.handle())


def test_order(bed: Bed) -> None:
    """A flag behind data; a completion behind posted writes; put and signal."""
    near, far, there, here = bed.near, bed.far, bed.there, bed.here
    for i in range(1, 60):
        near.store(there + 512, i)
        near.store(there + 1024, i)
        assert far.call("node.wait_until", there + 1024, "==", i, timeout=20) == i
        assert far.call("node.load", there + 512) == i
        # host1 pushes data here, then raises a flag at home; reading the flag pushes the data.
        far.call("node.store", here + 512, i)
        far.call("node.store", there + 2048, i)
        near.wait_until(there + 2048, "==", i, timeout=20)
        assert near.load(here + 512) == i
    data = random.Random(1).randbytes(50_000)
    near.write(there + 8192, data)
    near.store(there + 4096, 1)
    assert far.call("node.wait_until", there + 4096, "==", 1, timeout=20) == 1
    assert far.call("node.read", there + 8192, len(data)) == data
    near.store(there + 4096, 2)
    near.fence()
    near.store(there + 4104, 3)
    assert far.call("node.wait_until", there + 4104, "==", 3, timeout=20) == 3
    assert far.call("node.load", there + 4096) == 2


def test_dma(bed: Bed) -> None:
    """Copies in both directions, a fill, rows, and a signal behind data."""
    near, far = bed.near, bed.far
    size = 300_000
    source = near.alloc(size, name="source")
    target = bed.fabric.from_handle(far.call("node.alloc", size, name="target"))
    data = random.Random(2).randbytes(size)
    near.write(source.gva, data)
    near.dma.copy(dst=target.gva, src=source.gva, size=size, visible=True).wait(60)
    assert far.call("node.read", target.gva, size) == data
    back = near.alloc(size)
    near.dma.copy(dst=back.gva, src=target.gva, size=size).wait(60)
    assert near.read(back.gva, size) == data
    flag = bed.there + 64
    near.dma.put_signal(dst=target.gva + 100, src=source.gva, size=1000, signal=flag, value=77)
    assert far.call("node.wait_until", flag, "==", 77, timeout=30) == 77
    assert far.call("node.read", target.gva + 100, 1000) == data[:1000]


def test_registers(bed: Bed) -> None:
    """Doorbells, scratchpads and messages of the peer's NTB; a doorbell rings behind data."""
    near, far, there = bed.near, bed.far, bed.there
    near.store(there + 64, 9)
    near.ntb.peer_db_set("host1", 1 << 5)
    [event] = far.call("node.ntb.wait_event", timeout=20)
    assert event.bits == 1 << 5
    assert far.call("node.load", there + 64) == 9
    assert far.call("node.ntb.db_read") == 1 << 5
    near.ntb.peer_spad_write("host1", 3, 1234)
    assert near.ntb.peer_spad_read("host1", 3) == 1234
    assert far.call("node.ntb.spad_read", 3) == 1234
    near.ntb.peer_msg_write("host1", 1, 55)
    near.flush("host1")
    assert far.call("node.ntb.msg_read", 1) == (55, 0)


def test_control(bed: Bed) -> None:
    """Values, barriers, links, windows: what belongs to the fabric as a whole is the same from everywhere."""
    near, far, there = bed.near, bed.far, bed.there
    far.call("fabric.put", "greeting", b"x" * 100_000)
    assert bed.fabric.get("greeting", timeout=10) == b"x" * 100_000
    bed.fabric.put("greeting", b"y")
    assert far.call("fabric.get", "greeting") == b"y"
    if isinstance(far, Remote):
        far.send("node.barrier", "meet", timeout=20)
        near.barrier("meet", timeout=20)
        far.result()
    else:
        other = threading.Thread(target=far.call, args=("node.barrier", "meet"), kwargs={"timeout": 20})
        other.start()
        near.barrier("meet", timeout=20)
        other.join()
    near.load(there)
    link = bed.fabric.links["host1:ntb0-sw0:p1"]
    link.down()
    with pytest.raises(fabrex.LinkDown):
        near.load(there)
    with pytest.raises(fabrex.LinkDown):
        far.call("node.load", bed.here)
    near.store(there, 1)  # posted: nobody is told at once
    with pytest.raises(fabrex.LinkDown):
        near.flush(check=True)
    link.up()
    assert near.load(there) == 0
    near.flush(check=False)
    with contextlib.suppress(fabrex.LinkDown):
        near.flush("host1", check=True)
    near.flush("host1", check=True)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_manual_windows(transport: str) -> None:
    """Nothing is reachable before software programs a window, and nothing lands after it has cleared it."""
    with TRANSPORTS[transport].start(timing="off", windows="manual") as (fabric, near, far):
        there = fabric.gva("host1", 0)
        with pytest.raises(fabrex.NoWindow):
            near.load(there)
        window = near.ntb.windows[0]
        window.set_translation("host1", 4096, 8192, perm="r")  # bus addresses of host1's first region begin at 0
        assert near.load(there + 4096) == 0
        with pytest.raises(fabrex.CompleterAbort):
            near.store(there + 4096, 1)
        with pytest.raises(fabrex.NoWindow):
            near.load(there)
        far.call("node.store", there + 4096, 31)
        assert near.load(there + 4096) == 31
        window.clear_translation()
        with pytest.raises(fabrex.NoWindow):
            near.load(there + 4096)


@pytest.mark.parametrize("timing", ["on", "off"])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_adversary(transport: str, timing: str) -> None:
    """It never does what no rule permits, and soon what one does: a flag before its data if the flag is relaxed."""
    with TRANSPORTS[transport].start(timing=timing, ordering="adversarial", seed=3) as (fabric, near, far):
        data, flag = fabric.gva("host0", 64), fabric.gva("host0", 128)

        def early(rounds: range, **how: bool) -> Iterator[int]:
            """Rounds in which the flag was there before the data."""
            for i in rounds:
                far.send("stores", (data, i, {}), (flag, i, how))
                near.wait_until(flag, "==", i, timeout=30)
                found = near.load(data)
                far.result()
                assert found in (i - 1, i)
                if found != i:
                    yield i
                near.wait_until(data, "==", i, timeout=30)

        assert not list(early(range(1, 300)))
        assert next(early(range(300, 3000), ro=True), None) is not None, "the adversary found nothing"
        # What was written before is there when an answer from the same place is: reads push.
        for i in range(1, 100):
            near.store(fabric.gva("host1", 64), i)
            near.store(fabric.gva("host1", 4096), i, ro=True)
            assert near.load(fabric.gva("host1", 64)) == i
            assert near.fetch_add(fabric.gva("host1", 4096), 0) == i


def test_registered_memory(bed: Bed) -> None:
    """Memory that a process already had: scalars, atomics, bulk, DMA from the other side; an error once it is withdrawn."""
    near, far = bed.near, bed.far
    memory = bytearray(random.Random(3).randbytes(200_001))
    kept = near.register(memory)
    gva = kept.gva
    assert far.call("node.load", gva) == int.from_bytes(memory[:8], "little")
    far.call("node.store", gva + 8, 1 << 40)
    far.call("node.flush", "host0", check=True)
    assert memory[8:16] == (1 << 40).to_bytes(8, "little")
    assert far.call("node.fetch_add", gva + 8, 5) == 1 << 40
    assert far.call("node.compare_swap", gva + 8, (1 << 40) + 5, 3) == (1 << 40) + 5
    assert memory[8:16] == (3).to_bytes(8, "little")
    new = random.Random(4).randbytes(150_001)
    far.call("node.write", gva + 33, new)
    far.call("node.flush", "host0", check=True)
    assert memory[33 : 33 + len(new)] == new
    assert far.call("node.read", gva, len(memory)) == memory
    # DMA out of it and into it
    there = bed.fabric.from_handle(far.call("node.alloc", len(memory), name="theirs"))
    near.dma.copy(dst=there.gva, src=gva, size=len(memory), visible=True).wait(60)
    assert far.call("node.read", there.gva, len(memory)) == memory
    far.call("node.write", there.gva, bytes(1000))
    near.dma.copy(dst=gva + 7, src=there.gva, size=900).wait(60)
    assert memory[7:907] == bytes(900) and memory[907:] != bytes(len(memory) - 907)
    # what may only be read, and what is none any more
    fixed = near.register(b"0123456789abcdef", read_only=True)
    assert far.call("node.load", fixed.gva) == int.from_bytes(b"01234567", "little")
    with pytest.raises(fabrex.CompleterAbort):
        far.call("node.fetch_add", fixed.gva, 1)
    for gone in (kept, fixed):
        gone.close()
        with pytest.raises(fabrex.AddressError):
            far.call("node.load", gone.gva)
    memory.append(0)  # nothing holds it
