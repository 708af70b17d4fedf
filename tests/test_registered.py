# SPDX-License-Identifier: Apache-2.0
"""Registered memory: by its own process, by the kernel and by the service thread; what ends it, and what must not."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Child, eventually, persistent, topology

import fabrex

pytest_plugins = ["helpers"]

Start = Callable[..., Child]
SIZE = 1 << 18
STRETCH = 1000
WAYS = [pytest.param(False, id="kernel"), pytest.param(True, id="service")]
MODES = [
    pytest.param({"timing": False}, id="untimed"),
    pytest.param({"timing": True}, id="posted"),
    pytest.param({"timing": True, "ordering": "immediate"}, id="immediate"),
]

# The peer of a test: attaches host1 and does what it is told with the address.
PEER = """
    fabric = fabrex.Fabric.open("lab")
    node = fabric.attach("host1")
    scratch = node.alloc(1 << 18)
    def copied(dst, src, size):
        done = node.dma.copy(dst=dst, src=src, size=size)
        try:
            done.wait(20)
        except fabrex.FabricError as error:
            return [type(error).__name__, done.bytes_done]
        return ["", done.bytes_done]
    say("ready")
    while True:
        what, *rest = hear()
        try:
            if what == "load": say(node.load(rest[0], size=rest[1]))
            elif what == "store": node.store(rest[0], rest[1], size=rest[2]); node.flush("host0"); say("")
            elif what == "post": node.store(rest[0], rest[1]); say("")
            elif what == "lost": node.flush("host0", check=True); say("")
            elif what == "fetch_add": say(node.fetch_add(rest[0], rest[1], size=rest[2]))
            elif what == "swap": say(node.swap(rest[0], rest[1]))
            elif what == "cas": say(node.compare_swap(rest[0], rest[1], rest[2], size=rest[3]))
            elif what == "write": node.write(rest[0], bytes.fromhex(rest[1])); node.flush("host0"); say("")
            elif what == "read": say(node.read(rest[0], rest[1]).hex())
            elif what == "push":
                node.write(scratch.gva, bytes.fromhex(rest[1]))
                r = copied(rest[0], scratch.gva, len(rest[1]) // 2)
                node.flush("host0")
                say(*r)
            elif what == "pull": r = copied(scratch.gva, rest[0], rest[1]); say(*r, node.read(scratch.gva, rest[1]).hex())
            elif what == "signal":
                node.dma.put_signal(dst=rest[0], src=scratch.gva, size=rest[1], signal=rest[2], value=rest[3]).wait(20)
                say("")
        except fabrex.FabricError as error:
            say("!" + type(error).__name__)
    """


class Asked:
    """Have the peer do one thing and return what came of it."""

    def __init__(self, child: Child) -> None:
        self.child = child
        child.expect("ready")

    def __call__(self, *what: Any) -> Any:
        self.child.tell(*what)
        return self.child.hear()


@pytest.fixture
def peer(children: Start) -> Callable[[], Asked]:
    return lambda: Asked(children(PEER))


@pytest.fixture(params=MODES)
def lab(place: Path, request: pytest.FixtureRequest) -> Iterator[tuple[fabrex.Fabric, fabrex.Node]]:
    with fabrex.Fabric.create(topology(), "lab", **request.param) as fabric:
        yield fabric, fabric.attach("host0")


@pytest.mark.parametrize("service", WAYS)
def test_every_operation_from_another_process(
    lab: tuple[fabrex.Fabric, fabrex.Node], peer: Callable[[], Asked], service: bool
) -> None:
    _, node = lab
    array = np.zeros(SIZE, dtype="u1")
    words = array.view("<u8")
    with node.register(array, service=service) as region:
        ask = peer()
        assert region.gva % 4096 == array.ctypes.data % 4096, "an address keeps its alignment"
        words[0] = 0x0123456789ABCDEF
        assert ask("load", region.gva, 8) == 0x0123456789ABCDEF
        assert ask("load", region.gva + 1, 1) == 0xCD
        assert ask("store", region.gva + 8, 77, 8) == "" and words[1] == 77
        assert ask("store", region.gva + 10, 5, 2) == "" and words[1] == 77 | 5 << 16
        words[2] = (1 << 64) - 1
        assert ask("fetch_add", region.gva + 16, 3, 8) == (1 << 64) - 1 and words[2] == 2
        assert ask("fetch_add", region.gva + 20, 1, 4) == 0 and words[2] == 2 | 1 << 32
        assert ask("swap", region.gva + 16, 9) == 2 | 1 << 32 and words[2] == 9
        assert ask("cas", region.gva + 16, 8, 10, 8) == 9 and words[2] == 9
        assert ask("cas", region.gva + 16, 9, 10, 8) == 9 and words[2] == 10
        at = 2 * (-(array.ctypes.data // 8) % 2) + 32  # 16-byte aligned
        at += (array.ctypes.data + 8 * at) % 16 // 8
        words[at : at + 2] = 1, 2
        assert ask("cas", region.gva + 8 * at, 1 | 2 << 64, 3 | 4 << 64, 16) == 1 | 2 << 64
        assert list(words[at : at + 2]) == [3, 4]
        noise = random.Random(5)
        for size in (1, 63, 4096, 5000, 70_000, SIZE - 4096):
            offset = noise.randrange(SIZE - size)
            data = noise.randbytes(size)
            assert ask("write", region.gva + offset, data.hex()) == ""
            assert array[offset : offset + size].tobytes() == data, f"write of {size}"
            data = noise.randbytes(size)
            array[offset : offset + size] = np.frombuffer(data, "u1")
            assert ask("read", region.gva + offset, size) == data.hex(), f"read of {size}"
            assert ask("pull", region.gva + offset, size) == ["", size, data.hex()], f"pull of {size}"
            data = noise.randbytes(size)
            assert ask("push", region.gva + offset, data.hex()) == ["", size]
            assert array[offset : offset + size].tobytes() == data, f"push of {size}"


@pytest.mark.parametrize("service", WAYS)
def test_a_signal_comes_behind_the_data(lab: tuple[fabrex.Fabric, fabrex.Node], peer: Callable[[], Asked], service: bool) -> None:
    _, node = lab
    array = np.ones(SIZE, dtype="u1")
    with node.register(array, service=service) as region:
        ask = peer()
        flag = region.gva + SIZE - 8 - (region.gva + SIZE) % 8
        array[-16:] = 0
        assert ask("signal", region.gva, SIZE - 64, flag, 3) == ""
        node.wait_until(flag, "==", 3, timeout=5)
        assert not array[: SIZE - 64].any()


def test_the_owner_sees_what_arrives_without_asking(place: Path, peer: Callable[[], Asked]) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric:
        array = np.zeros(8, dtype="<u8")
        for service in (False, True):
            with fabric.attach("host0") as node, node.register(array, service=service) as region:
                ask = peer()
                assert ask("post", region.gva, 41 + service) == ""
                assert eventually(lambda: array[0] == 41 + service), "the service thread keeps raw memory current"  # noqa: B023
                ask.child.end()


def test_between_two_registered_buffers(place: Path) -> None:
    """In one process, and of both the same and different nodes."""
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        near, far, other = (np.frombuffer(random.Random(i).randbytes(SIZE), "u1").copy() for i in range(3))
        with h0.register(near) as a, h1.register(far) as b, h1.register(other) as c:
            h0.dma.copy(dst=b.gva, src=a.gva, size=SIZE, visible=True).wait(5)
            assert (far == near).all()
            h1.dma.copy(dst=c.gva, src=b.gva, size=SIZE).wait(5)
            assert (other == near).all()
            far[:] = 7
            h0.dma.copy(dst=a.gva, src=b.gva, size=SIZE).wait(5)
            assert (near == 7).all()
            with pytest.raises(fabrex.InvalidArgument, match="overlap"):
                h0.dma.copy(dst=a.gva, src=a.gva + 64, size=4096).wait(5)


def test_it_takes_as_long_as_memory_of_the_first_tier(place: Path) -> None:
    with fabrex.Fabric.create(topology(latency="130ns"), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        plain = h0.alloc(SIZE, align=4096)
        data = mmap.mmap(-1, SIZE)  # begins a page, as the other does
        with h0.register(data) as region:
            for kind, size in (
                ("load", 8),
                ("store", 8),
                ("read", 4096),
                ("write", 65536),
                ("dma_read", 65536),
                ("dma_write", 65536),
            ):
                mine, theirs = h1.estimate(kind, region.gva, size), h1.estimate(kind, plain.gva, size)
                assert mine["completes_ps"] == theirs["completes_ps"], kind
            h1.load(region.gva)
            before = fabric.fidelity()["load"]["count"]
            h1.load(region.gva)
            assert fabric.fidelity()["load"]["count"] == before + 1, "counted like any other"


def test_what_can_be_registered(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        with h0.register(b"only to be read") as region:
            assert region.read_only
            assert h1.read(region.gva, 4) == b"only"
            for attempt in (
                lambda: h1.write(region.gva, b"x"),
                lambda: h1.store(region.gva, 1, size=1),
                lambda: h1.fetch_add(region.gva & ~7, 1),
            ):
                with pytest.raises(fabrex.CompleterAbort if attempt.__code__.co_consts else fabrex.FabricError):
                    attempt()
        data = bytearray(64)
        region = h0.register(data)
        with pytest.raises(BufferError):
            data.extend(b"more")  # what is registered does not move
        region.close()
        region.close()
        data.extend(b"more")
        for bad, why in (
            (np.zeros((8, 8))[:, 1], "contiguous"),
            (b"", "no bytes"),
            (object(), "no memory"),
            (3, "no memory"),
            (b"x", "read_only"),
        ):
            with pytest.raises(fabrex.InvalidArgument, match=why):
                h0.register(bad, read_only=False)
        for pointer, size in ((0, 8), (-1, 8), (1 << 64, 8), (4096, 0), (4096, -1), ((1 << 64) - 4, 8)):
            with pytest.raises((fabrex.InvalidArgument, fabrex.AddressError)):
                h0.register_address(pointer, size)
        with pytest.raises(fabrex.AddressError, match="not memory"):
            h0.register_address(4096, 64)
        with pytest.raises(TypeError):
            pickle.dumps(h0.register(bytearray(8)))
        h0.close()
        with pytest.raises(fabrex.ClosedHandle):
            h0.register(bytearray(8))


def test_its_edges(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        data = mmap.mmap(-1, 8192)
        first, second = h0.register(memoryview(data)[:4096]), h0.register(memoryview(data)[4096:])
        for access in (
            lambda gva: h1.load(gva),
            lambda gva: h1.store(gva, 1),
            lambda gva: h1.read(gva - 8, 32),
            lambda gva: h1.write(gva - 8, bytes(32)),
            lambda gva: h1.dma.copy(dst=gva - 8, src=h1.fabric.gva("host1"), size=64).wait(5),
            lambda gva: h1.dma.copy(dst=h1.fabric.gva("host1"), src=gva - 8, size=64).wait(5),
        ):
            with pytest.raises(fabrex.AddressError):
                access(second.gva + 4096)
        assert not any(data[:]), "nothing was written by what failed"
        with pytest.raises(fabrex.AddressError, match="cannot be mapped"):
            h1.view(first.gva, 64)
        addresses = {first.gva, second.gva}
        first.close()
        for _ in range(50):  # an address is not used again soon, so a stale one meets nothing
            with h0.register(memoryview(data)[:4096]) as again:
                assert again.gva not in addresses
                addresses.add(again.gva)
        with pytest.raises(fabrex.AddressError, match="no memory"):
            h1.load(min(addresses))
        second.close()
        data.close()


@pytest.mark.parametrize("service", WAYS)
def test_memory_that_was_freed_is_an_error_and_not_a_crash(place: Path, peer: Callable[[], Asked], service: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric:
        node = fabric.attach("host0")
        base = libc.mmap(None, SIZE, 3, 0x22, -1, 0)
        region = node.register_address(base, SIZE, service=service)
        ask = peer()
        assert ask("store", region.gva, 5, 8) == ""
        assert libc.munmap(base + SIZE // 2, SIZE // 2) == 0
        gone = region.gva + SIZE // 2
        assert ask("load", region.gva, 8) == 5
        assert ask("load", gone, 8) == "!UnsupportedRequest"
        assert ask("fetch_add", gone, 1, 8) == "!UnsupportedRequest"
        assert ask("read", gone - 8, 64) == "!UnsupportedRequest"
        name, moved, _ = ask("pull", region.gva, SIZE)
        assert name == "UnsupportedRequest" and moved <= SIZE // 2
        name, moved = ask("push", region.gva, "01" * SIZE)
        assert name == "UnsupportedRequest" and moved <= SIZE // 2
        assert node.load(region.gva) == 0x0101010101010101
        with pytest.raises(fabrex.UnsupportedRequest):
            node.load(gone)
        before = fabric.node_info("host0")["posted_dropped"]
        ask("post", gone, 1)
        assert ask("lost", 0) in ("", "!LinkDown")
        assert fabric.node_info("host0")["posted_dropped"] > before, "a posted write vanishes, and is counted"
        region.close()
        libc.munmap(base, SIZE // 2)


@pytest.mark.parametrize("service", WAYS)
def test_closing_under_traffic(place: Path, peer: Callable[[], Asked], service: bool) -> None:
    """Once close() has returned nobody touches the bytes; transfers under way end with how much arrived."""
    with fabrex.Fabric.create(topology(dilation=STRETCH), "lab", timing=True) as fabric:
        node = fabric.attach("host0")
        ask = peer()
        for turn in range(4):
            array = np.zeros(SIZE, dtype="u1")
            region = node.register(array, service=service)
            ask.child.tell("push", region.gva, "5a" * SIZE)
            assert eventually(lambda a=array, at=64 * turn: a[at] != 0)
            region.close()
            seen = array.copy()
            name, moved = ask.child.hear()
            assert (array == seen).all(), "written after close() had returned"
            arrived = int((array != 0).sum())
            assert name in ("", "AddressError") and (moved == SIZE or abs(arrived - moved) <= 1 << 16)


@pytest.mark.parametrize("timing", [False, True])
def test_its_process_dies(place: Path, children: Start, timing: bool) -> None:
    code = """
        import numpy as np
        fabric = fabrex.Fabric.open("lab")
        node = fabric.attach("host0", arguments[1])
        array = np.zeros(1 << 18, dtype="u1")
        region = node.register(array, service=arguments[0])
        say(region.gva)
        hear()
        """
    with persistent(topology(), timing=timing) as fabric:
        owner, node = fabric.attach("host0"), fabric.attach("host1")
        for service in (False, True):
            child = children(code, service, "client")
            gva = child.hear()
            node.store(gva, 3)
            node.flush("host0")
            assert node.load(gva) == 3
            child.kill()
            for attempt in (lambda a=gva: node.load(a), lambda a=gva: node.fetch_add(a, 1), lambda a=gva: node.read(a, 5000)):
                with pytest.raises((fabrex.PeerLost, fabrex.AddressError)):
                    attempt()
            done = node.dma.copy(dst=gva, src=fabric.gva("host1"), size=4096)
            try:
                done.wait(5)
                node.flush("host0")
            except (fabrex.PeerLost, fabrex.AddressError):
                pass
            owner.store(fabric.gva("host0"), 1)
            node.store(fabric.gva("host0"), 2)
            node.flush("host0")
            assert owner.load(fabric.gva("host0")) == 2, "its node goes on"
        assert fabric.info()["counters"]["corrupt_resets"] == 0


def test_a_stopped_process_serves_nobody_and_blocks_nobody_for_ever(place: Path, children: Start) -> None:
    code = """
        fabric = fabrex.Fabric.open("lab")
        node = fabric.attach("host0")
        data = bytearray(4096)
        region = node.register(data, service=True)
        say(region.gva)
        hear()
        """
    with persistent(topology(), timing=False) as fabric:
        node = fabric.attach("host1")
        child = children(code)
        gva = child.hear()
        assert node.load(gva) == 0
        child.signal(signal.SIGSTOP)
        assert eventually(lambda: Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")
        with pytest.raises(fabrex.CompletionTimeout):
            node.load(gva)
        with pytest.raises(fabrex.CompletionTimeout):
            node.fetch_add(gva, 1)
        child.signal(signal.SIGCONT)
        assert eventually(lambda: node.fetch_add(gva, 1) in (0, 1)), "it answers again"


def test_atomics_of_several_processes_are_counted_exactly(place: Path, children: Start) -> None:
    code = """
        fabric = fabrex.Fabric.open("lab")
        node = fabric.attach("host1", "client")
        say(1)
        hear()
        for _ in range(300):
            node.fetch_add(arguments[0], 1)
        say(2)
        """
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        node = fabric.attach("host0")
        words = np.zeros(8, dtype="<u8")
        with node.register(words) as region:
            workers = [children(code, region.gva) for _ in range(3)]
            for worker in workers:
                worker.expect(1)
            for worker in workers:
                worker.tell("go")
            for _ in range(300):
                node.fetch_add(region.gva, 1)
            for worker in workers:
                worker.expect(2)
            assert words[0] == 1200


@pytest.mark.parametrize("profile", ["fabrex", "xeon-gen4", "switchtec", "idt", "epf"])
def test_small_devices_reach_it_through_their_windows(place: Path, profile: str) -> None:
    with fabrex.Fabric.create(topology(ntb=profile), "lab", timing=False) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        data = bytearray(1 << 16)
        with h0.register(data) as region:
            h1.store(region.gva - region.gva % 8 + 8, 4)
            h1.write(region.gva + 5000, b"through a window")
            assert data[5000:5016] == b"through a window"


def test_manual_windows_need_one_for_it(place: Path) -> None:
    with fabrex.Fabric.create(topology(windows="manual"), "lab", timing=False) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        data = mmap.mmap(-1, 8192)
        view = memoryview(data)
        with h0.register(view) as region:
            with pytest.raises(fabrex.NoWindow):
                h1.load(region.gva)
            bus = (1 << 40) + (region.gva & (1 << 40) - 1)  # behind the one region of host0
            h1.ntb.windows[0].set_translation("host0", bus, 8192)
            h1.store(region.gva + 8, 6)
            assert data[8] == 6
        view.release()


def test_a_child_of_fork_leaves_it_alone(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        data = bytearray(64)
        region = h0.register(data)
        pid = os.fork()
        if not pid:
            try:
                region.close()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        h1.store(region.gva & ~7 | 8, 1)
        region.close()


def test_many(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        arrays = [np.full(16, i, dtype="<u8") for i in range(500)]
        regions = [h0.register(array) for array in arrays]
        noise = random.Random(3)
        for i in noise.sample(range(500), 250):
            regions[i].close()
        for i, region in enumerate(regions):
            if region.closed:
                with pytest.raises(fabrex.AddressError):
                    h1.load(region.gva)
            else:
                assert h1.load(region.gva + 120) == i


def test_tensors(place: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with fabrex.Fabric.create(topology(), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        tensor = torch.arange(4096, dtype=torch.float32)
        target = h1.alloc(tensor.numel() * 4)
        with h0.register(tensor) as region:
            h0.dma.copy(dst=target.gva, src=region.gva, size=target.size, visible=True).wait(5)
            assert torch.equal(target.tensor(torch.float32), tensor)
        with pytest.raises(fabrex.InvalidArgument, match="contiguous"):
            h0.register(tensor.reshape(64, 64).T)
