# SPDX-License-Identifier: Apache-2.0
"""Windows: what can be programmed, what passes, and that nothing passes any more once a change has returned."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import Child, topology

import fabrex

pytest_plugins = ["helpers"]

PROFILES = ["fabrex", "xeon-gen3", "xeon-gen4", "amd", "idt", "switchtec", "epf"]
MIB = 1 << 20


@pytest.fixture
def manual(place: Path) -> Iterator[tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]]:
    with fabrex.Fabric.create(topology(windows="manual"), "lab", timing=True) as fabric:
        yield fabric, fabric.attach("host0"), fabric.attach("host1")


def test_nothing_is_reachable_until_a_window_says_so(manual: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    fabric, h0, h1 = manual
    gva = fabric.gva("host1")
    assert not any(window.programmed for window in h0.ntb.windows)
    for attempt in (lambda: h0.load(gva), lambda: h0.store(gva, 1), lambda: h0.read(gva, 8), lambda: h0.view(gva, 8)):
        with pytest.raises(fabrex.NoWindow):
            attempt()
    h0.store(fabric.gva("host0"), 1)  # one's own memory needs none
    window = h0.ntb.windows[3]
    window.set_translation("host1", 8192, 4096)
    assert (window.programmed, window.peer, window.translation, window.size) == (True, "host1", 8192, 4096)
    h0.store(window.address, 77)
    h0.store(gva + 8192 + 4088, 78)
    assert h0.load(gva + 8192) == 77 and h0.load(window.address + 4088) == 78
    assert h1.read(gva + 8192, 8) == (77).to_bytes(8, "little")
    for outside in (gva + 8184, gva + 8192 + 4096, window.address + 4096, window.address - 8):
        with pytest.raises(fabrex.AddressError):
            h0.load(outside)
    with pytest.raises(fabrex.AddressError):
        h0.write(window.address + 4090, b"1234567")
    with pytest.raises(fabrex.NoWindow):
        h1.load(fabric.gva("host0"))  # windows are of one node
    window.clear_translation()
    assert not window.programmed and window.peer is None and window.size == 0
    with pytest.raises(fabrex.NoWindow):
        h0.load(window.address)


def test_a_window_can_be_moved_while_it_is_used(manual: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    fabric, h0, h1 = manual
    window = h0.ntb.windows[0]
    for i in range(64):
        h1.store(fabric.gva("host1", 512 * i), i)
    for i in range(0, 64, 8):
        window.set_translation("host1", 512 * i, 4096)
        assert [h0.load(window.address + 512 * k) for k in range(8)] == list(range(i, i + 8))


def test_permissions(manual: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    fabric, h0, h1 = manual
    h1.store(fabric.gva("host1"), 5)
    window = h0.ntb.windows[0]
    loads = [lambda a: h0.load(a), lambda a: h0.read(a, 100), lambda a: h0.load(a, size=64), lambda a: h0.view(a, 8)]
    stores = [lambda a: h0.store(a, 6), lambda a: h0.write(a, b"x" * 100)]
    atomics = [lambda a: h0.fetch_add(a, 1), lambda a: h0.swap(a, 1), lambda a: h0.compare_swap(a, 5, 6)]
    for perm, allowed, refused in (
        ("r", loads, stores + atomics),
        ("w", [], loads + atomics),
        ("none", [], loads + stores + atomics),
        ("", [], loads + stores + atomics),
    ):
        window.set_translation("host1", 0, 65536, perm=perm)
        for address in (window.address, fabric.gva("host1")):
            for attempt in allowed:
                attempt(address)
            for attempt in refused:
                with pytest.raises(fabrex.CompleterAbort):
                    attempt(address)
            assert h1.read(fabric.gva("host1"), 8) == (5).to_bytes(8, "little")
    window.set_translation("host1", 0, 65536, perm="r")
    assert h0.view(window.address, 8).readonly
    window.set_translation("host1", 0, 65536, perm="w")
    h0.store(window.address, 9)
    h0.flush("host1")
    assert h1.read(fabric.gva("host1"), 1) == b"\x09"
    with pytest.raises(fabrex.InvalidArgument):
        window.set_translation("host1", 0, 65536, perm="rwx")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_refuses_what_the_silicon_refuses(place: Path, profile: str) -> None:
    big = topology(ntb=profile, windows="manual", sizes={"host1": "256GiB"})
    with fabrex.Fabric.create(big, "lab", timing=False) as fabric, fabric.attach("host0") as node:
        assert len(node.ntb.windows) == fabric.node_info("host0")["windows"] >= 2
        with pytest.raises(IndexError):
            node.ntb.windows[len(node.ntb.windows)]
        for window in (node.ntb.windows[0], node.ntb.windows[len(node.ntb.windows) - 1]):
            align, size = window.address_align, min(window.max_size, 128 << 30)
            if window.lut and profile == "switchtec":
                align = window.max_size
            window.set_translation("host1", align if align + size <= 256 << 30 else 0, size)
            before = (window.translation, window.size, window.peer)
            if align > 1:
                for wrong in (1, align // 2, align + align // 2, align - 1):
                    with pytest.raises(fabrex.WindowError):
                        window.set_translation("host1", wrong, size)
            if window.size_align > 1:
                with pytest.raises(fabrex.WindowError):
                    window.set_translation("host1", 0, size - 1)
            with pytest.raises(fabrex.WindowError):
                window.set_translation("host1", 0, window.max_size * 2)
            with pytest.raises(fabrex.WindowError):
                window.set_translation("host1", 0, 0)
            if window.lut and profile != "fabrex":
                with pytest.raises(fabrex.WindowError, match="fixed"):
                    window.set_translation("host1", 0, window.max_size // 2)
            with pytest.raises((fabrex.AddressError, fabrex.WindowError)):
                window.set_translation("host1", 1 << 50, size)
            for peer in ("host0",):
                with pytest.raises(fabrex.InvalidArgument):
                    window.set_translation(peer, 0, size)
            with pytest.raises(fabrex.FabricNotFound):
                window.set_translation("nobody", 0, size)
            for address, length in ((-1, size), (0, -1), (1 << 64, size)):
                with pytest.raises(fabrex.InvalidArgument):
                    window.set_translation("host1", address, length)
            assert (window.translation, window.size, window.peer) == before, "a refused change changed something"


def test_lut_windows(place: Path) -> None:
    with fabrex.Fabric.create(topology(ntb="switchtec", windows="manual"), "lab", timing=False) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        windows = [window for window in h0.ntb.windows if window.lut]
        assert windows and all(not window.lut for window in list(h0.ntb.windows)[:2])
        size = windows[0].max_size
        order = list(range(len(windows)))
        random.Random(3).shuffle(order)
        for slot, window in zip(order, windows, strict=True):
            window.set_translation("host1", slot * size, size)
        for slot, window in zip(order, windows, strict=True):
            h0.store(window.address + 8, slot + 1)
        assert [h1.load(fabric.region_gva("host1", None, i * size + 8)) for i in range(len(order))] == [
            i + 1 for i in range(len(order))
        ]
        h0.write(fabric.region_gva("host1", None, size - 100), b"z" * 200)  # from one window into the next
        assert h1.read(fabric.region_gva("host1", None, size - 100), 200) == b"z" * 200


def test_a_small_device_is_multiplexed_over_a_large_region(place: Path) -> None:
    described = topology(ntb="switchtec", sizes={"host1": "8GiB"})
    with fabrex.Fabric.create(described, "lab", timing=False) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        base, noise = fabric.region_gva("host1"), random.Random(4)
        wrote: dict[int, int] = {}
        for i in range(300):
            at = noise.randrange((8 << 30) // 64) * 64
            h0.store(base + at, i)
            wrote[at] = i
        assert all(h0.load(base + at) == value == h1.load(base + at) for at, value in wrote.items())
        data = noise.randbytes(5 * MIB + 3)  # across several pieces of 2 MiB
        h0.write(base + 3 * MIB - 5, data)
        assert h0.read(base + 3 * MIB - 5, len(data)) == data == h1.read(base + 3 * MIB - 5, len(data))
        assert bytes(h0.view(base + 5000, 4096)) == h1.read(base + 5000, 4096)
        with pytest.raises(fabrex.AddressError):
            h0.view(base, 64 * MIB)  # more than any window of the device shows at once


MULTIPLEX = """
    fabric = fabrex.Fabric.open("lab")
    node = fabric.attach("host0", "client")
    base, me = fabric.region_gva("host1"), arguments[0]
    say("ready")
    hear()
    for i in range(400):
        at = base + ((i * 7 + me * 13) % 64) * (2 << 20) + 64 * me
        node.store(at, i)
        assert node.load(at) == i
    say("done")
"""


def test_clients_share_the_two_windows_of_a_small_device(place: Path, children: Callable[..., Child]) -> None:
    with fabrex.Fabric.create(topology(ntb="switchtec", sizes={"host1": "1GiB"}), "lab", timing=False):
        clients = [children(MULTIPLEX, number) for number in range(3)]
        for client in clients:
            client.expect("ready")
        for client in clients:
            client.tell("go")
        for client in clients:
            client.expect("done")
            client.finish()


# ---- nothing lands afterwards -------------------------------------------------------------------------------------------------

HAMMER = """
    fabric = fabrex.Fabric.open("lab")
    node = fabric.attach("host0", "client")
    from fabrex._handle import ffi, lib
    gvas = [fabric.gva("host1", 8 * i) for i in range(512)]
    addresses = ffi.new("uint64_t[]", gvas)
    total, record = ffi.new("uint64_t *"), ffi.new("struct fbx_op *")
    say("ready")
    refused = 0
    while True:
        how = arguments[0]
        try:
            if how == "stores":
                for gva in gvas:
                    node.store(gva, 0xFF)
            elif how == "write":
                node.write(gvas[0], b"\\xff" * 4096)
            elif how == "atomics":
                for gva in gvas:
                    node.fetch_add(gva, 1)
            else:
                total[0], record.kind = 0, lib.FBX_OTHER
                lib.fbx_scatter(node._handle.pointer, record, addresses, 512, 8, b"\\xff" * 4096, total, 1 << 40)
        except fabrex.FabricError:
            refused += 1
            if refused == 1:
                say("refused")
"""


@pytest.mark.parametrize("timing", [False, True], ids=["untimed", "timed"])
@pytest.mark.parametrize("how", ["stores", "write", "atomics", "core"])
@pytest.mark.parametrize("what", ["window", "link"])
def test_nothing_lands_after_a_change_has_returned(
    place: Path, children: Callable[..., Child], what: str, how: str, timing: bool
) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=timing) as fabric:
        node, peer = fabric.attach("host0"), fabric.attach("host1")
        window, (link,) = node.ntb.windows[1], fabric.links.values()
        assert window.peer == "host1"
        memory = np.frombuffer(peer.view(fabric.gva("host1"), 4096), dtype="u8")
        child = children(HAMMER, how)
        child.expect("ready")
        for _ in range(12):
            end = time.monotonic() + 5
            while not memory.any():
                assert time.monotonic() < end, "the hammer does not hit"
                peer.progress()
            if what == "window":
                window.clear_translation()
            else:
                link.down()
            memory[:] = 0
            peer.progress()
            for _ in range(20):
                assert not memory.any(), "landed after the change had returned"
                time.sleep(0.0005)
            if what == "window":
                window.set_translation("host1", 0, 16 * MIB)
            else:
                link.up()


def test_clear_waits_for_what_is_on_a_long_way(place: Path) -> None:
    with fabrex.Fabric.create(topology(delay="900ms"), "lab", timing=True) as fabric:
        node, peer = fabric.attach("host0"), fabric.attach("host1")
        gva = fabric.gva("host1")
        operation = node.begin("store", gva, 0x55)
        node.ntb.windows[1].clear_translation()
        memory = peer.view(gva, 8)
        memory[:] = bytes(8)
        while fabric.now_ps < operation.arrives_ps + 1_000_000_000:
            time.sleep(0.01)
        peer.progress()
        assert bytes(memory) == bytes(8), "landed after clear had returned"
