# SPDX-License-Identifier: Apache-2.0
"""Operations against a reference: loads, stores, atomics and bulk, by every way in; and what posted means."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Child, run, topology

import fabrex

pytest_plugins = ["helpers"]

MODES = [
    pytest.param({"timing": False, "ordering": "posted"}, id="untimed"),
    pytest.param({"timing": True, "ordering": "posted"}, id="posted"),
    pytest.param({"timing": True, "ordering": "immediate"}, id="immediate"),
]
SPACE = 4096


@pytest.fixture(params=MODES)
def pair(place: Path, request: pytest.FixtureRequest) -> Iterator[tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]]:
    with fabrex.Fabric.create(topology(), "lab", **request.param) as fabric:
        yield fabric, fabric.attach("host0"), fabric.attach("host1")


@pytest.fixture
def slow(place: Path) -> Iterator[tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]]:
    """Two hosts with 40 ms between them, so that what is under way can be looked at."""
    with fabrex.Fabric.create(topology(delay="40ms"), "lab", timing=True) as fabric:
        yield fabric, fabric.attach("host0"), fabric.attach("host1")


class Reference:
    """What memory holds after each operation, and what the operation brings."""

    def __init__(self, size: int) -> None:
        self.memory = bytearray(size)

    def value(self, at: int, size: int) -> int:
        return int.from_bytes(self.memory[at : at + size], "little")

    def set(self, at: int, size: int, value: int) -> None:
        self.memory[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


class Index:
    """An int by __index__ alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def _step(node: fabrex.Node, base: int, model: Reference, noise: random.Random, resumable: bool) -> None:
    kind = noise.choice(("load", "store", "fetch_add", "swap", "compare_swap", "read", "write"))

    def call(name: str, gva: int, *arguments: Any, **options: Any) -> Any:
        if resumable:
            return node.begin(name, gva, *arguments, **options).wait(10)
        return getattr(node, name)(gva, *arguments, **options)

    if kind in ("read", "write"):
        size = noise.choice((1, 2, 3, 7, 8, 9, 63, 64, 65, 200, 1000))
        at = noise.randrange(SPACE - size)
        if kind == "read":
            assert call("read", base + at, size) == bytes(model.memory[at : at + size])
        else:
            data = noise.randbytes(size)
            call("write", base + at, data)
            model.memory[at : at + size] = data
        return
    sizes = {"load": (1, 2, 4, 8, 16, 32, 64), "store": (1, 2, 4, 8, 16, 32, 64), "compare_swap": (4, 8, 16)}
    if resumable:
        sizes["store"] = (1, 2, 4, 8)
    size = noise.choice(sizes.get(kind, (4, 8)))
    at = noise.randrange(SPACE // size) * size
    old, new = model.value(at, size), noise.getrandbits(8 * size)
    if kind == "load":
        found = call("load", base + at, size=size)
        assert found == (old if size <= 8 else bytes(model.memory[at : at + size]))
    elif kind == "store":
        call("store", base + at, new, size=size)
        model.set(at, size, new)
    elif kind == "fetch_add":
        assert call("fetch_add", base + at, new, size=size) == old
        model.set(at, size, old + new)
    elif kind == "swap":
        assert call("swap", base + at, new, size=size) == old
        model.set(at, size, new)
    else:
        expected = old if noise.random() < 0.5 else old ^ 1 << noise.randrange(8 * size)
        assert call("compare_swap", base + at, expected, new, size=size) == old
        if expected == old:
            model.set(at, size, new)


@pytest.mark.parametrize("where", ["host0", "host1"])
@pytest.mark.parametrize("resumable", [False, True], ids=["blocking", "resumable"])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_do_what_a_plain_memory_does(pair: Any, where: str, resumable: bool, seed: int) -> None:
    fabric, h0, h1 = pair
    base, model, noise = fabric.gva(where, 8192), Reference(SPACE), random.Random(seed)
    for _ in range(600 if not resumable else 300):
        _step(h0, base, model, noise, resumable)
    h0.flush()
    assert h0.read(base, SPACE) == bytes(model.memory)
    time.sleep(0.001)
    assert h1.read(base, SPACE) == bytes(model.memory), "the other node sees another memory"


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_resumable_wide_store_stores_its_value(pair: Any, size: int) -> None:
    fabric, h0, _ = pair
    value = (1 << 8 * size) - 0x1234
    h0.begin("store", fabric.gva("host1"), value, size=size).wait(5)
    h0.flush()
    assert h0.load(fabric.gva("host1"), size=size) == value.to_bytes(size, "little")


def test_bulk_of_every_length_and_alignment(pair: Any) -> None:
    fabric, h0, h1 = pair
    base = fabric.gva("host1", 16384)
    noise = random.Random(3)
    for length in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 255, 4095, 4096, 4097, 10_000):
        for start in (0, 1, 3, 7, 8, 63):
            data = noise.randbytes(length)
            around = noise.randbytes(length + 256)
            h0.write(base, around)
            assert h0.write(base + 64 + start, data) == length
            h0.flush("host1")
            want = around[: 64 + start] + data + around[64 + start + length :]
            out = bytearray(length + 256)
            if length > 1000 and fabric.timing:
                h1.readinto(base, out)  # a bulk read over the link costs a round trip per access
            else:
                h0.readinto(base, out)
            assert bytes(out) == want, (length, start)


def test_bulk_of_nothing(pair: Any) -> None:
    fabric, h0, _ = pair
    assert h0.write(fabric.gva("host1"), b"") == 0
    assert h0.read(fabric.gva("host1"), 0) == b""
    h0.gather([], bytearray())
    h0.scatter([], b"")


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8", "c16", "M8[s]", ">i4", "S5"])
def test_numpy_arrays_of_any_type(pair: Any, dtype: str) -> None:
    fabric, h0, _ = pair
    raw = np.frombuffer(random.Random(4).randbytes(240), dtype="u1")
    array = raw.view(dtype).reshape(-1, 2) if raw.nbytes // np.dtype(dtype).itemsize % 2 == 0 else raw.view(dtype)
    assert h0.write(fabric.gva("host1"), array) == 240
    h0.flush()
    out = np.zeros_like(array)
    assert h0.readinto(fabric.gva("host1"), out) == 240
    assert out.tobytes() == array.tobytes()


def test_buffers_of_every_kind(pair: Any) -> None:
    fabric, h0, _ = pair
    gva = fabric.gva("host1")
    import array
    import mmap

    view = memoryview(bytearray(b"0123456789"))
    with mmap.mmap(-1, 4096) as pages:
        pages[:4] = b"page"
        for data in (b"bytes", bytearray(b"array"), view[2:7], array.array("I", [1, 2, 3]), pages, np.arange(5)):
            raw = bytes(memoryview(data).cast("B")) if not isinstance(data, np.ndarray) else data.tobytes()
            assert h0.write(gva, data) == len(raw)
            h0.flush()
            assert h0.read(gva, len(raw)) == raw
        h0.write(gva, b"into" + bytes(36))
        h0.flush()
        for out in (bytearray(4), view[:4], array.array("I", [0]), pages, np.zeros(1, "i4")):
            h0.readinto(gva, out)
            assert bytes(memoryview(out).cast("B")[:4]) == b"into"


def test_buffers_that_cannot_be_used_are_refused_clearly(pair: Any) -> None:
    fabric, h0, _ = pair
    gva = fabric.gva("host1")
    h0.write(gva, b"unharmed")
    h0.flush()
    stripes = np.zeros((8, 8), "u1")[:, ::2]
    for data in (stripes, memoryview(bytes(64))[::2], "text", 5, None, [1, 2], stripes.T):
        with pytest.raises((TypeError, ValueError, BufferError)):
            h0.write(gva, data)
    frozen = np.zeros(8, "u1")
    frozen.flags.writeable = False
    for out in (bytes(8), memoryview(bytes(8)), frozen, stripes, "text", 8):
        with pytest.raises((TypeError, ValueError, BufferError)):
            h0.readinto(gva, out)
    assert h0.read(gva, 8) == b"unharmed"


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64])
def test_gather_and_scatter(pair: Any, size: int) -> None:
    fabric, h0, _ = pair
    noise = random.Random(size)
    slots = noise.sample(range(128), 50)
    addresses = [fabric.gva("host1", 64 * slot) for slot in slots]
    values = np.frombuffer(noise.randbytes(50 * size), dtype="u1").reshape(50, size)
    h0.scatter(np.array(addresses, dtype=np.uint64), values)
    h0.flush()
    for as_given in (addresses, tuple(addresses), iter(addresses), np.array(addresses, dtype=np.uint64)):
        out = np.zeros_like(values)
        h0.gather(as_given, out)
        assert (out == values).all()
    again = bytearray(50 * size)
    h0.gather(addresses, again, size)
    assert bytes(again) == values.tobytes()


def test_gather_and_scatter_refuse_what_does_not_fit(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric, fabric.attach("host0") as h0:
        gva = fabric.gva("host1")
        for gvas, out, size in (
            ([gva, gva + 8], bytearray(15), None),
            ([gva], bytearray(8), 4),
            ([gva, gva], bytearray(1), None),
            (np.array([gva], dtype=">u8"), bytearray(8), None),
            (np.array([gva, gva, gva, gva], dtype=np.uint64)[::2], bytearray(16), None),
            (np.array([1.0]), bytearray(8), None),
            (np.array([1], dtype=np.uint32), bytearray(8), None),
            ([gva], bytearray(3), None),
            ([gva], bytearray(128), None),
        ):
            with pytest.raises(fabrex.FabricError):
                h0.gather(gvas, out, size)
        with pytest.raises((TypeError, ValueError, BufferError)):
            h0.gather([gva], bytes(8))
        with pytest.raises(OverflowError):
            h0.gather([-1], bytearray(8))
        out = bytearray(b"\x11" * 24)
        h0.store(gva, 7)
        with pytest.raises(fabrex.AddressError):
            h0.gather([gva, 64, gva], out)
        assert out[:8] == (7).to_bytes(8, "little"), "what was loaded before stays"
        assert out[16:] == b"\x11" * 8


def test_atomics_wrap_around(pair: Any) -> None:
    fabric, h0, _ = pair
    for size in (4, 8):
        gva, top = fabric.gva("host1", 64 * size), (1 << 8 * size) - 1
        h0.store(gva + size, 0x77, size=size)
        h0.store(gva, top, size=size)
        assert h0.fetch_add(gva, 1, size=size) == top
        assert h0.fetch_add(gva, top, size=size) == 0
        assert h0.fetch_add(gva, top, size=size) == top
        assert h0.load(gva, size=size) == top - 1
        assert h0.load(gva + size, size=size) == 0x77, "the carry left its word"


def test_values_that_do_not_fit(pair: Any) -> None:
    fabric, h0, _ = pair
    gva = fabric.gva("host1")
    h0.store(gva, 42)
    h0.flush()
    for size in (1, 2, 4, 8, 16, 32, 64):
        for value in (-1, 1 << 8 * size):
            with pytest.raises(OverflowError):
                h0.store(gva, value, size=size)
    for size in (4, 8):
        for value in (-1, 1 << 8 * size):
            for name in ("fetch_add", "swap"):
                with pytest.raises(OverflowError):
                    getattr(h0, name)(gva, value, size=size)
    for size in (4, 8, 16):
        for value in (-1, 1 << 8 * size):
            for arguments in ((value, 0), (0, value)):
                with pytest.raises(OverflowError):
                    h0.compare_swap(gva, *arguments, size=size)
    for address in (-1, 1 << 64, 1 << 70):
        for attempt in (h0.load, lambda a: h0.store(a, 1), lambda a: h0.read(a, 8), lambda a: h0.begin("load", a)):
            with pytest.raises(OverflowError):
                attempt(address)
    for value in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            h0.wait_until(gva, "==", value)
    assert h0.load(gva) == 42


def test_anything_with_index_is_an_integer(pair: Any) -> None:
    fabric, h0, _ = pair
    gva = fabric.gva("host1")
    for whole in (Index, np.uint64, np.int64):
        h0.store(whole(gva), whole(5), size=Index(8))
        assert h0.load(whole(gva)) == 5
        assert h0.fetch_add(whole(gva), whole(1)) == 5
        assert h0.swap(whole(gva), whole(9)) == 6
        assert h0.compare_swap(whole(gva), whole(9), whole(10)) == 9
        assert h0.load(gva, size=np.uint8(8)) == 10
    h0.store(gva, True)
    assert h0.load(gva) == 1
    for wrong in (1.0, "1", None, 1j, b"1"):
        for attempt in (lambda v=wrong: h0.store(gva, v), lambda v=wrong: h0.load(v), lambda v=wrong: h0.fetch_add(gva, v)):
            with pytest.raises(TypeError):
                attempt()


@pytest.mark.parametrize("case", ["read", "write", "begin", "begin-float", "begin-text", "gather-float"])
def test_integers_are_the_same_everywhere(pair: Any, case: str) -> None:
    fabric, h0, _ = pair
    gva = fabric.gva("host1")
    if case == "read":
        h0.read(Index(gva), Index(8))
    elif case == "write":
        h0.write(Index(gva), b"12345678")
    elif case == "begin":
        h0.begin("store", Index(gva), Index(7)).wait(5)
    else:
        with pytest.raises(TypeError):
            if case == "gather-float":
                h0.gather([float(gva)], bytearray(8))
            else:
                h0.begin("store", gva, 1.5 if case == "begin-float" else "7")


@pytest.mark.parametrize("size", [(1 << 32) + 8, (1 << 64) + 8, 8 - (1 << 32)])
def test_a_size_that_no_access_has_is_not_cut_to_one_that_has(pair: Any, size: int) -> None:
    fabric, h0, _ = pair
    with pytest.raises((fabrex.AlignmentError, OverflowError)):
        h0.load(fabric.gva("host1"), size=size)


@pytest.mark.parametrize("size", [0, 3, 5, 6, 7, 9, 12, 24, 63, 65, 128, 1 << 20])
def test_sizes_that_no_access_has(pair: Any, size: int) -> None:
    fabric, h0, _ = pair
    gva = fabric.gva("host1")
    for attempt in (
        lambda: h0.load(gva, size=size),
        lambda: h0.store(gva, 1, size=size),
        lambda: h0.fetch_add(gva, 1, size=size),
        lambda: h0.swap(gva, 1, size=size),
        lambda: h0.compare_swap(gva, 1, 1, size=size),
        lambda: h0.begin("load", gva, size=size).wait(),
    ):
        with pytest.raises(fabrex.AlignmentError):
            attempt()


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64])
def test_misaligned_accesses(pair: Any, size: int) -> None:
    fabric, h0, _ = pair
    for shift in {1, size // 2, size - 1}:
        with pytest.raises(fabrex.AlignmentError):
            h0.load(fabric.gva("host1") + shift, size=size)
        with pytest.raises(fabrex.AlignmentError):
            h0.store(fabric.gva("host0") + shift, 0, size=size)


def test_atomics_of_two_bytes_and_of_pairs(pair: Any) -> None:
    fabric, h0, _ = pair
    gva = fabric.gva("host1")
    for size in (1, 2):
        with pytest.raises(fabrex.AlignmentError, match="4 or 8"):
            h0.fetch_add(gva, 1, size=size)
    for name in ("fetch_add", "swap"):
        with pytest.raises(fabrex.AlignmentError, match="4 or 8"):
            getattr(h0, name)(gva, 1, size=16)
    one, two = 1 << 127 | 5, 1 << 64
    h0.store(gva, one, size=16)
    assert h0.compare_swap(gva, one ^ 1 << 127, two, size=16) == one
    assert h0.compare_swap(gva, one, two, size=16) == one
    assert h0.load(gva, size=16) == two.to_bytes(16, "little")


ENDS = """
    size = 16 << 20
    fabric = fabrex.Fabric.create(fabrex.Topology.from_dict(arguments[0]), "ends", timing=arguments[1])
    node = fabric.attach("host0")
    seen = []
    for where in ("host0", "host1"):
        start = fabric.region_gva(where)
        end = start + size
        node.store(end - 8, 1)
        node.write(end - 3, b"abc")
        node.flush()
        assert node.read(end - 3, 3) == b"abc"
        for attempt in (
            lambda: node.load(end), lambda: node.store(end, 1), lambda: node.fetch_add(end, 1),
            lambda: node.read(end - 3, 4), lambda: node.write(end - 3, b"xxxx"), lambda: node.write(end, b"x"),
            lambda: node.load(end, size=64), lambda: node.read(start, size + 1), lambda: node.write(start, bytes(size + 1)),
            lambda: node.load(8), lambda: node.store((1 << 63) | (5 << 40), 1), lambda: node.view(end - 8, 9),
            lambda: node.swap(end, 1), lambda: node.compare_swap(end, 1, 2, size=16), lambda: node.begin("load", end).wait(),
        ):
            try:
                attempt()
                seen.append("nothing")
            except fabrex.AddressError:
                pass
        assert node.read(end - 3, 3) == b"abc", "a refused write wrote"
        assert node.load(start) == 0
    fabric.close()
    say(seen)
"""


def test_addresses_outside_every_region_timed(place: Path) -> None:
    assert run(ENDS, topology().to_dict(), True) == []


def test_addresses_outside_every_region_untimed(place: Path) -> None:
    try:
        assert run(ENDS, topology().to_dict(), False) == []
    finally:
        for path in place.iterdir():
            path.unlink()


# ---- posted -----------------------------------------------------------------------------------------------------------------


def test_a_posted_store_is_seen_at_its_arrival_and_not_before(slow: Any) -> None:
    fabric, h0, h1 = slow
    gva = fabric.gva("host1")
    for value in range(1, 4):
        operation = h0.begin("store", gva, value)
        assert operation.done()
        assert operation.arrives_ps >= operation.issued_ps + 40_000_000_000
        found = h1.load(gva)
        if fabric.now_ps < operation.arrives_ps:
            assert found == value - 1, "visible before it arrived"
        while fabric.now_ps <= operation.arrives_ps:
            time.sleep(0.001)
        assert h1.load(gva) == value, "not visible at the first access after its arrival"


def test_each_kind_of_access_at_the_target_delivers_first(slow: Any) -> None:
    fabric, h0, h1 = slow
    gva = fabric.gva("host1")
    looks: dict[str, Callable[[], int]] = {
        "load": lambda: h1.load(gva),
        "read": lambda: int.from_bytes(h1.read(gva, 8), "little"),
        "fetch_add": lambda: h1.fetch_add(gva, 0),
        "compare_swap": lambda: h1.compare_swap(gva, 0, 0),
        "progress": lambda: (h1.progress(), int.from_bytes(h1.view(gva, 8), "little"))[1],
    }
    late = []
    for value, (name, look) in enumerate(looks.items(), 1):
        operation = h0.begin("store", gva, value)
        while fabric.now_ps <= operation.arrives_ps:
            time.sleep(0.001)
        if look() != value:
            late.append(name)
            h1.progress()
    # Each is the first access of its kind here; the short way of the first load must not change the others.
    assert not [name for name in late if name in ("load", "progress")]


def test_the_target_waits_for_a_store(slow: Any) -> None:
    fabric, h0, h1 = slow
    gva = fabric.gva("host1")
    h0.store(gva, 1)
    h0.flush()
    assert h1.load(gva) == 1
    operation = h0.begin("store", gva, 5)
    assert h1.wait_until(gva, "==", 5, timeout=1) == 5
    assert fabric.now_ps >= operation.arrives_ps


def test_stores_on_one_way_become_visible_in_order(place: Path) -> None:
    with fabrex.Fabric.create(topology(delay="200us"), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        last, noise = 0, random.Random(5)
        for turn in range(40):
            arrivals = []
            for i in range(noise.randrange(1, 20)):
                value = turn * 100 + i + 1
                if noise.random() < 0.3:
                    h0.write(fabric.gva("host1", 4096 + 8 * i), value.to_bytes(8, "little") * noise.randrange(1, 100))
                operation = h0.begin("store", fabric.gva("host1", 8 * i), value)
                arrivals.append(operation.arrives_ps)
            assert arrivals == sorted(arrivals) and arrivals[0] >= last
            last = arrivals[-1]
            seen = [int.from_bytes(h1.read(fabric.gva("host1", 8 * i), 8), "little") for i in range(len(arrivals))]
            fresh = [value > turn * 100 for value in seen]
            # Looked at in the order of the stores: once an older one is missing, a younger one may only be there because it
            # arrived meanwhile; look backwards for what order forbids.
            seen = [int.from_bytes(h1.read(fabric.gva("host1", 8 * i), 8), "little") for i in reversed(range(len(arrivals)))]
            fresh = [value > turn * 100 for value in reversed(seen)]
            assert fresh == sorted(fresh, reverse=True) or fabric.now_ps >= arrivals[0]
        h0.flush()
        assert h1.read(fabric.gva("host1"), 8) == (39 * 100 + 1).to_bytes(8, "little")


def test_a_load_pushes_its_own_stores_and_a_flush_all(slow: Any) -> None:
    fabric, h0, h1 = slow
    gva = fabric.gva("host1")
    h0.store(gva, 7)
    assert h0.load(gva) == 7
    h0.store(gva, 8)
    assert h0.fetch_add(gva, 1) == 8
    h0.store(gva + 64, 9)
    start = fabric.now_ps
    h0.flush("host1")
    assert fabric.now_ps - start >= 80_000_000_000, "a flush is a round trip"
    assert bytes(h1.view(gva + 64, 1)) == b"\x09"
    h0.flush()
    h0.flush("host0")


def test_a_fence_orders_without_waiting(place: Path) -> None:
    described = fabrex.Topology.from_dict(
        {
            "fabrex": 1,
            "name": "two-ways",
            "nodes": {f"h{i}": {"kind": "host", "memory": {"dram": "16MiB"}} for i in range(3)},
            "links": [
                {"endpoints": ["h0:a", "h1:a"], "pcie": {"gen": 4, "lanes": 16}, "delay": "50ms"},
                {"endpoints": ["h0:b", "h2:b"], "pcie": {"gen": 4, "lanes": 16}, "delay": "1us"},
                {"endpoints": ["h1:c", "h2:c"], "pcie": {"gen": 4, "lanes": 16}},
            ],
        }
    )
    with fabrex.Fabric.create(described, "lab", timing=True) as fabric, fabric.attach("h0") as h0:
        far = h0.begin("store", fabric.gva("h1"), 1)
        near = h0.begin("store", fabric.gva("h2"), 1)
        assert near.arrives_ps < far.arrives_ps, "without a fence ways are independent"
        far = h0.begin("store", fabric.gva("h1"), 2)
        h0.fence()
        assert fabric.now_ps < far.arrives_ps, "a fence waited"
        for operation in (h0.begin("store", fabric.gva("h2"), 2), h0.begin("store", fabric.gva("h1"), 3)):
            assert operation.arrives_ps >= far.arrives_ps
        h0.write(fabric.gva("h2", 64), b"x" * 1000)
        h0.flush("h2")
        assert fabric.now_ps >= far.arrives_ps


def test_a_full_queue_pushes_back_and_loses_nothing(place: Path) -> None:
    with fabrex.Fabric.create(topology(delay="30ms"), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        count = 3000
        for i in range(count):
            h0.store(fabric.gva("host1", 8 * i), i + 1)
        h0.flush("host1")
        found = np.frombuffer(h1.read(fabric.gva("host1"), 8 * count), dtype="<u8")
        assert (found == np.arange(1, count + 1)).all()
        assert fabric.node_info("host1")["posted_dropped"] == 0


def test_a_long_write_lands_whole(place: Path) -> None:
    with fabrex.Fabric.create(topology(delay="3us"), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        data = random.Random(6).randbytes(3_000_001)
        start = fabric.region_gva("host1", None, 70_001)
        h0.write(start, data)
        h0.store(fabric.gva("host1"), 1)
        while not h0.load(fabric.gva("host1")):
            pass
        assert h1.read(start, len(data)) == data, "a flag passed the data before it"


def test_link_down_loses_what_is_under_way_and_says_so(slow: Any) -> None:
    fabric, h0, h1 = slow
    (link,) = fabric.links.values()
    gva = fabric.gva("host1")
    h0.store(gva, 1)
    link.down()
    time.sleep(0.05)
    assert h1.read(gva, 8) == bytes(8), "it crossed a link that was down"
    assert fabric.node_info("host1")["posted_dropped"] == 1
    h0.store(gva, 2)  # posted: no error
    assert fabric.node_info("host1")["posted_dropped"] == 2
    for attempt in (lambda: h0.load(gva), lambda: h0.flush("host1"), lambda: h0.read(gva, 8), lambda: h0.swap(gva, 1)):
        with pytest.raises(fabrex.LinkDown):
            attempt()
    link.up()
    with pytest.raises(fabrex.LinkDown, match="lost"):
        h0.flush(check=True)
    h0.flush(check=True)
    h0.store(gva, 3)
    h0.flush(check=True)
    assert h0.load(gva) == 3


def test_a_checked_flush_reports_what_was_lost_in_flight(slow: Any) -> None:
    fabric, h0, _ = slow
    (link,) = fabric.links.values()
    h0.store(fabric.gva("host1"), 1)
    link.down()
    link.up()
    with pytest.raises(fabrex.LinkDown):
        h0.flush(check=True)


def test_strict_errors_raise_at_once(place: Path) -> None:
    for timing in (False, True):
        with fabrex.Fabric.create(topology(), "lab", timing=timing, strict_errors=True) as fabric, fabric.attach("host0") as h0:
            h0.store(fabric.gva("host1"), 1)
            next(iter(fabric.links.values())).down()
            with pytest.raises(fabrex.LinkDown):
                h0.store(fabric.gva("host1"), 2)
            with pytest.raises(fabrex.LinkDown):
                h0.write(fabric.gva("host1"), b"x" * 100)


# ---- resumable and asynchronous -----------------------------------------------------------------------------------------------


def test_operations_overlap_and_can_be_polled(slow: Any) -> None:
    fabric, h0, h1 = slow
    for i in range(8):
        h1.store(fabric.gva("host1", 64 * i), i)
    start = fabric.now_ps
    operations = [h0.begin("load", fabric.gva("host1", 64 * i)) for i in range(8)]
    assert not any(operation.done() for operation in operations)
    with pytest.raises(fabrex.InvalidArgument):
        operations[0].result()
    with pytest.raises(fabrex.WaitTimeout):
        operations[0].wait(timeout=0.001)
    assert [operation.wait() for operation in operations] == list(range(8))
    assert fabric.now_ps - start < 8 * 80_000_000_000, "eight loads one after the other"
    assert all(operation.done() and operation.result() == i for i, operation in enumerate(operations))


def test_await(slow: Any) -> None:
    fabric, h0, h1 = slow
    h1.store(fabric.gva("host1"), 11)
    ticks = 0

    async def ticker() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.005)

    async def main() -> list[Any]:
        other = asyncio.create_task(ticker())
        found = await asyncio.gather(*(_awaited(h0.begin("load", fabric.gva("host1"))) for _ in range(5)))
        assert await h0.begin("fetch_add", fabric.gva("host1"), 1) == 11
        assert await h0.begin("write", fabric.gva("host1", 64), b"abc") is None
        assert await h0.begin("read", fabric.gva("host1", 64), 3) == b"abc"
        other.cancel()
        return list(found)

    assert asyncio.run(main()) == [11] * 5
    assert ticks > 10, "the loop stood still"


async def _awaited(operation: fabrex.node.Operation) -> Any:
    return await operation


def test_begin_refuses_what_is_no_operation(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric, fabric.attach("host0") as h0:
        gva = fabric.gva("host1")
        for kind in ("flush", "dance", ""):
            with pytest.raises(fabrex.InvalidArgument):
                h0.begin(kind, gva)
        for arguments in (("load", gva, 1), ("store", gva), ("compare_swap", gva, 1), ("read", gva)):
            with pytest.raises(TypeError):
                h0.begin(*arguments)
        with pytest.raises((ValueError, OverflowError)):
            h0.begin("read", gva, -1)
        with pytest.raises(fabrex.AlignmentError):
            h0.begin("swap", gva, 1, size=16).wait()


def test_a_write_under_way_holds_its_buffer(slow: Any) -> None:
    fabric, h0, _ = slow
    data = bytearray(b"x" * 100_000)
    operation = h0.begin("write", fabric.gva("host1", 0), data)
    assert not operation.done()
    with pytest.raises(BufferError):
        data.clear()


def test_a_timeout_of_a_wait_on_a_value(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric, fabric.attach("host0") as h0:
        gva = fabric.gva("host0")
        h0.store(gva, 5)
        for compare, value in (("==", 6), ("!=", 5), ("<", 5), ("<=", 4), (">", 5), (">=", 6)):
            with pytest.raises(fabrex.WaitTimeout, match="5"):
                h0.wait_until(gva, compare, value, timeout=0.005)
        for compare, value in (("==", 5), ("!=", 6), ("<", 6), ("<=", 5), (">", 4), (">=", 5)):
            assert h0.wait_until(gva, compare, value, timeout=1) == 5
        assert h0.wait_until(gva, "==", 5, timeout=0) == 5
        for timeout in (-1, float("nan"), "1"):
            with pytest.raises(fabrex.InvalidArgument):
                h0.wait_until(gva, "==", 5, timeout=timeout)
        with pytest.raises(fabrex.InvalidArgument):
            h0.wait_until(gva, "~", 5)


def test_a_timeout_may_be_infinite(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric, fabric.attach("host0") as h0:
        assert h0.wait_until(fabric.gva("host0"), "==", 0, timeout=float("inf")) == 0


# ---- between processes ----------------------------------------------------------------------------------------------------------


def test_messages_between_two_processes_arrive_in_order(place: Path, children: Callable[..., Child]) -> None:
    """A ring of 64 slots with a flag behind each payload, in timed posted mode, the consumer polling over the link."""
    rounds = 400
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric:
        child = children(
            """
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host1")
            say("ready")
            for i in range(arguments[0]):
                slot = fabric.gva("host0", 128 * (i % 64))
                while i >= 64 and int.from_bytes(node.read(fabric.gva("host1", 0), 8), "little") < i - 63:
                    pass
                node.write(slot, bytes([i % 256]) * 100)
                node.store(slot + 104, i + 1)
            node.flush("host0", check=True)
            say("done")
            """,
            rounds,
        )
        child.expect("ready")
        node = fabric.attach("host0")
        end = time.monotonic() + 20
        for i in range(rounds):
            slot = fabric.gva("host0", 128 * (i % 64))
            while int.from_bytes(node.read(slot + 104, 8), "little") != i + 1:
                assert time.monotonic() < end, f"message {i} does not come"
                node.progress()
            assert node.read(slot, 100) == bytes([i % 256]) * 100, "a flag passed its data"
            node.store(fabric.gva("host1", 0), i + 1)
        child.expect("done")
        child.finish()


def test_atomics_of_threads_and_of_both_sides_are_counted_exactly(pair: Any) -> None:
    fabric, h0, h1 = pair
    gva, count = fabric.gva("host1"), 500

    def add(node: fabrex.Node) -> None:
        for _ in range(count):
            node.fetch_add(gva, 1)

    threads = [threading.Thread(target=add, args=(node,)) for node in (h0, h0, h1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert h0.load(gva) == 3 * count


@pytest.mark.parametrize("dilation", [1, 7, 1000, 100000])
def test_dilation_stretches_modelled_time_and_nothing_else(place: Path, dilation: int) -> None:
    stretched = fabrex.Topology.from_dict({**fabrex.Topology.preset("fabrex-pair").to_dict(), "dilation": dilation})
    with fabrex.Fabric.create(stretched) as fabric:
        node, gva = fabric.attach("host0"), fabric.gva("host1")
        node.load(gva)
        modelled = node.estimate("load", gva)["completes_ps"]
        assert modelled == 311_829  # the model does not know of it
        begin = time.perf_counter()
        for _ in range(3):
            node.load(gva)
        # Nobody can make it quicker; how much longer it took is the machine's affair.
        assert time.perf_counter() - begin > 3 * modelled * 1e-12 * dilation * 0.95 - 1e-6
