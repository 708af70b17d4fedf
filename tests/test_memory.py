# SPDX-License-Identifier: Apache-2.0
"""Buffers and raw views: who gets which bytes, how they are found, and how long they last."""

from __future__ import annotations

import gc
import itertools
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import Child, mapped, run, topology

import fabrex

pytest_plugins = ["helpers"]


def test_buffers_never_overlap_and_space_is_used_again(place: Path) -> None:
    noise = random.Random(1)
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        live: list[fabrex.Buffer] = []
        base = fabric.region_gva("host0")
        for _ in range(600):
            if live and noise.random() < 0.48:
                live.pop(noise.randrange(len(live))).free()
                continue
            size, align = noise.choice((1, 63, 64, 65, 4096, 100_000)), 1 << noise.randrange(0, 17)
            buffer = node.alloc(size, align=align)
            assert buffer.gva % max(align, 64) == 0 or (buffer.gva - base) % max(align, 64) == 0
            assert buffer.size == len(buffer) == size and buffer.gva >= base + 65536
            assert buffer.gva + size <= base + (16 << 20)
            live.append(buffer)
            spans = sorted((b.gva, b.gva + (b.size + 63) // 64 * 64) for b in live)
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert sorted(b.gva for b in fabric.buffers()) == sorted(b.gva for b in live)
        assert fabric.node_info("host0")["regions"][0]["allocated"] == sum(b.size for b in live)
        for buffer in live:
            buffer.free()
        whole = node.alloc((16 << 20) - 65536)
        with pytest.raises(fabrex.OutOfFabricMemory):
            node.alloc(1)
        whole.free()
        assert fabric.node_info("host0")["regions"][0]["allocated"] == 0


def test_impossible_requests(place: Path) -> None:
    with fabrex.Fabric.create(topology(3), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        for arguments, options in (((0,), {}), ((64,), {"align": 3}), ((64,), {"align": 1 << 31})):
            with pytest.raises(fabrex.InvalidArgument):
                node.alloc(*arguments, **options)
        for size in (-1, 1 << 64):
            with pytest.raises(OverflowError):
                node.alloc(size)
        for options in ({"on": "sw0"}, {"tier": "hbm"}):
            with pytest.raises(fabrex.InvalidArgument):
                node.alloc(64, **options)
        with pytest.raises(fabrex.FabricNotFound):
            node.alloc(64, on="nobody")
        with pytest.raises(fabrex.OutOfFabricMemory):
            node.alloc(1 << 62)
        assert fabric.buffers() == []


def test_a_names_buffer_is_one(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        buffer = node.alloc(100, "inbox")
        with pytest.raises(fabrex.FabricExists):
            node.alloc(100, "inbox", on="host1")
        assert len(fabric.buffers()) == 1
        buffer.free()
        node.alloc(200, "inbox").free()
        with pytest.raises(fabrex.FabricNotFound):
            fabric.buffer("inbox")


def test_freed_buffers_and_their_handles_are_stale(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        buffer = node.alloc(4096, "box")
        handle = buffer.handle()
        assert fabric.from_handle(handle).gva == buffer.gva
        copy = fabric.buffer("box")
        buffer.free()
        node.alloc(4096, "box")  # the same place and the same entry, another generation
        for attempt in (buffer.free, copy.free, lambda: copy.memory, lambda: fabric.from_handle(handle)):
            with pytest.raises(fabrex.StaleHandle):
                attempt()
        with pytest.raises(fabrex.StaleHandle), node.alloc(64) as short:
            short.free()


def test_handles_are_of_one_fabric(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "one", timing=False) as one, fabrex.Fabric.create(topology(), "two") as two:
        handle = one.attach("host0").alloc(4096).handle()
        two.attach("host0").alloc(4096)
        with pytest.raises(fabrex.StaleHandle):
            two.from_handle(handle)


def test_garbage_is_no_handle(place: Path) -> None:
    noise = random.Random(2)
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        good = node.alloc(4096, "box").handle()
        cases = [b"", b"\x00", b"\xc1", good[:-1], good + b"x", b"\x97" + b"\xff" * 7, b"\x98" + b"\xc0" * 8, b"\x91" * 2000]
        cases += [noise.randbytes(noise.randrange(1, 60)) for _ in range(200)]
        for _ in range(300):
            wrong = bytearray(good)
            wrong[noise.randrange(len(wrong))] = noise.randrange(256)
            cases.append(bytes(wrong))
        for case in cases:
            try:
                found = fabric.from_handle(case)
            except (fabrex.InvalidArgument, fabrex.StaleHandle):
                continue
            assert found.gva >> 40 and found.size >= 0
        for wrong in ("text", None, 5, object()):
            with pytest.raises((fabrex.InvalidArgument, TypeError)):
                fabric.from_handle(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["region", "offset", "bytes"])
def test_a_handle_cannot_claim_more_than_the_buffer(place: Path, field: str) -> None:
    import msgpack

    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        parts = msgpack.unpackb(node.alloc(4096).handle())
        at = {"region": 4, "offset": 5, "bytes": 6}[field]
        parts[at] = 1 if field == "region" else parts[at] + 4096
        with pytest.raises((fabrex.InvalidArgument, fabrex.StaleHandle)):
            fabric.from_handle(msgpack.packb(parts))


def test_a_buffer_travels_between_processes(place: Path, children: Callable[..., Child]) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        buffer = node.alloc(4096, "box")
        child = children(
            """
            import pickle
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host1")
            buffer = fabric.from_handle(bytes.fromhex(hear()))
            node.store(buffer.gva, 5)
            again = pickle.loads(bytes.fromhex(hear()))
            say(buffer.gva, again.gva, again.name, again.fabric.name)
            """
        )
        child.tell(buffer.handle().hex())
        child.tell(pickle.dumps(buffer).hex())
        assert child.hear() == [buffer.gva, buffer.gva, "box", "lab"]
        assert node.load(buffer.gva) == 5
        child.finish()


def test_raw_memory_is_the_memory(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        node, peer = fabric.attach("host0"), fabric.attach("host1")
        buffer = node.alloc(4096)
        array = buffer.numpy("<u4", (32, 32))
        array[3, 4] = 0xDEADBEEF
        assert peer.load(buffer.gva + 4 * (3 * 32 + 4), size=4) == 0xDEADBEEF
        peer.store(buffer.gva, 7, size=1)
        assert buffer.memory[0] == 7 and array[0, 0] == 7
        assert np.from_dlpack(buffer)[0] == 7  # type: ignore[arg-type]
        assert buffer.numpy("f8").shape == (512,) and buffer.numpy("f8", 3).shape == (3,)
        for shape in (4097, (64, 65), (-1, 5)):
            with pytest.raises((fabrex.InvalidArgument, ValueError)):
                buffer.numpy("u1", shape)
        view = peer.view(buffer.gva, 16)
        view[8:12] = b"view"
        assert bytes(buffer.memory[8:12]) == b"view"
        with pytest.raises((IndexError, ValueError)):
            view[16] = 0


def test_views_outlive_buffer_node_and_fabric(place: Path) -> None:
    fabric = fabrex.Fabric.create(topology(), "lab", timing=False)
    node = fabric.attach("host0")
    buffer = node.alloc(4096)
    memory, array = buffer.memory, buffer.numpy("u8")
    slice_ = array[5:9]
    array[:] = np.arange(512)
    buffer.free()
    node.close()
    fabric.close()
    del buffer, node, fabric, array
    gc.collect()
    assert memory[8] == 1 and list(slice_) == [5, 6, 7, 8]
    slice_[:] = 0
    assert mapped(str(place)), "the memory lives as long as its views"
    del memory, slice_
    gc.collect()
    assert not mapped(str(place)), "the last view is gone and the memory is not"


def test_a_view_of_what_nobody_in_this_process_is(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        with fabric.attach("host0") as node:
            node.alloc(64, "box")
        with pytest.raises(fabrex.InvalidArgument, match="attach"):
            fabric.buffer("box").memory  # noqa: B018


def test_views_of_nothing_and_of_too_much(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric, fabric.attach("host0") as node:
        with pytest.raises(fabrex.InvalidArgument):
            node.view(fabric.gva("host0"), 0)
        for gva, size in ((fabric.gva("host0"), (16 << 20) + 1), (fabric.gva("host1"), 1 << 40), (0, 8), (5 << 40, 8)):
            with pytest.raises(fabrex.AddressError):
                node.view(gva, size)
        with pytest.raises(OverflowError):
            node.view(fabric.gva("host0"), -1)


def test_collection_in_any_order_is_safe(place: Path) -> None:
    """With freed memory overwritten by the allocator, so that a use after free cannot go unnoticed."""
    said = run(
        """
        import gc, itertools, random
        kinds = ["fabric", "node", "buffer", "view", "operation", "link", "window"]
        for seed in range(120):
            noise = random.Random(seed)
            fabric = fabrex.Fabric.create("fabrex-pair", "lab", timing=bool(seed % 2))
            node = fabric.attach("host0")
            kept = {"fabric": fabric, "node": node, "buffer": node.alloc(4096), "view": node.view(fabric.gva("host1"), 64),
                    "operation": node.begin("load", fabric.gva("host1")), "link": fabric.links["host0:ntb0-sw0:p0"],
                    "window": node.ntb.windows[0]}
            if seed % 3 == 0:
                kept["buffer"].memory
            for name in noise.sample(kinds, noise.randrange(4)):
                if hasattr(kept[name], "close"):
                    kept[name].close()
            if seed % 5 == 0:
                kept["cycle"] = [kept]  # everything in one garbage cycle
            del fabric, node
            if "cycle" in kept:
                del kept
                gc.collect()
                continue
            for name in noise.sample(kinds, len(kinds)):
                del kept[name]
                if noise.random() < 0.5:
                    gc.collect()
            gc.collect()
        say("alive")
        """,
        environment={"MALLOC_PERTURB_": "165"},
    )
    assert said == "alive"


def test_the_end_of_a_read_only_view_takes_nothing_else_along(place: Path) -> None:
    try:
        said = run(
            """
            import gc, mmap
            fabric = fabrex.Fabric.create("fabrex-pair", "lab", timing=False)
            node = fabric.attach("host0")
            node.ntb.windows[1].set_translation("host1", 0, 1 << 30, perm="r")
            node.load(fabric.gva("host1"))  # maps the region
            neighbour = mmap.mmap(-1, 1 << 30)  # the kernel puts the next mapping of that size right below it
            neighbour[0] = 1
            view = node.view(fabric.gva("host1"), 8)
            assert view.readonly
            fabric.close()
            del fabric, node, view
            gc.collect()
            say(neighbour[0])
            """
        )
        assert said == 1
    finally:
        for path in place.iterdir():
            path.unlink()


def test_a_read_only_view_cannot_be_written(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric, fabric.attach("host0") as node:
        node.ntb.windows[1].set_translation("host1", 0, 16 << 20, perm="r")
        view = node.view(fabric.gva("host1"), 64)
        with pytest.raises(TypeError):
            view[0] = 1
        array = np.frombuffer(view, "u1")
        assert not array.flags.writeable
        fabric.attach("host1").store(fabric.gva("host1"), 9)
        assert view[0] == 9 and array[0] == 9
