# SPDX-License-Identifier: Apache-2.0
"""The DMA engine: against a reference, in every direction; its errors, its order, its time, and the ways to wait for it."""

from __future__ import annotations

import asyncio
import os
import random
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Child, eventually, topology

import fabrex

pytest_plugins = ["helpers"]

MODES = [
    pytest.param({"timing": False, "ordering": "posted"}, id="untimed"),
    pytest.param({"timing": True, "ordering": "posted"}, id="posted"),
    pytest.param({"timing": True, "ordering": "immediate"}, id="immediate"),
]
SIZE = 1 << 16
STRETCH = 1000  # so that a busy machine keeps up too: links forget what is long past, and with it who else was there
Three = tuple[fabrex.Fabric, fabrex.Node, fabrex.Node, fabrex.Node]


def described(hosts: int = 3, *, tags: int = 32, channels: int = 2, delay: str = "50ns", **settings: Any) -> fabrex.Topology:
    """Hosts on one switch, each with a DMA engine that takes its time to set up."""
    dma = {"channels": channels, "tags": tags, "setup_write": "300ns", "setup_read": "500ns"}
    nodes: dict[str, Any] = {f"host{i}": {"kind": "host", "memory": {"dram": "64MiB"}, "dma": dma} for i in range(hosts)}
    nodes["sw0"] = {"kind": "switch", "delay": "105ns"}
    links = [{"endpoints": [f"host{i}:ntb0", f"sw0:p{i}"], "pcie": {"gen": 4, "lanes": 16}, "delay": delay} for i in range(hosts)]
    return fabrex.Topology.from_dict({"fabrex": 1, "name": "test", "nodes": nodes, "links": links, **settings})


@pytest.fixture(params=MODES)
def three(place: Path, request: pytest.FixtureRequest) -> Iterator[Three]:
    with fabrex.Fabric.create(described(), "lab", **request.param) as fabric:
        yield fabric, fabric.attach("host0"), fabric.attach("host1"), fabric.attach("host2")


@pytest.fixture
def slow(place: Path) -> Iterator[tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]]:
    """Two hosts with 80 ms between them, so that what is under way can be looked at."""
    with fabrex.Fabric.create(described(2, delay="40ms"), "lab", timing=True) as fabric:
        yield fabric, fabric.attach("host0"), fabric.attach("host1")


def test_copies_agree_with_a_reference(three: Three) -> None:
    """Local, remote and third-party; random ranges; every form."""
    _, *nodes = three
    noise = random.Random(11)
    buffers = [node.alloc(SIZE) for node in nodes]
    models = [bytearray(noise.randbytes(SIZE)) for _ in nodes]
    engine = nodes[0]
    for node, buffer, model in zip(nodes, buffers, models, strict=True):
        node.write(buffer.gva, bytes(model))
    half = SIZE // 2
    for _ in range(120):
        to, of = noise.randrange(3), noise.randrange(3)
        size = noise.choice((0, 1, 7, 8, 63, 64, 4095, 4096, 4097, 20000))
        at, out = noise.randrange(half, SIZE - size - 8), noise.randrange(half - size)
        dst, src = buffers[to].gva, buffers[of].gva
        form = noise.choice(("copy", "fill", "copy_2d", "copy_list", "put_signal"))
        options = {"visible": noise.random() < 0.5, "channel": 0}
        if form == "copy":
            done = engine.dma.copy(dst + at, src + out, size, **options)
            models[to][at : at + size] = models[of][out : out + size]
        elif form == "fill":
            done = engine.dma.fill(dst + at, 0xA1B2, size, width=2, **options)
            models[to][at : at + size] = (b"\xb2\xa1" * size)[:size]
        elif form == "copy_2d":
            done = engine.dma.copy_2d(dst + half, src, 100, 20, 300, 500, **options)
            size = 2000
            for row in range(20):
                models[to][half + row * 300 :][:100] = b""
                models[to][half + row * 300 : half + row * 300 + 100] = models[of][row * 500 : row * 500 + 100]
        elif form == "copy_list":
            pieces = [(half + i * 700, noise.randrange(half - 600), noise.randrange(600)) for i in range(9)]
            done = engine.dma.copy_list([(dst + d, src + s, n) for d, s, n in pieces], **options)
            size = sum(n for _, _, n in pieces)
            for d, s, n in pieces:
                models[to][d : d + n] = models[of][s : s + n]
        else:
            flag = (at + size + 7) & ~7
            if flag + 8 > SIZE:
                continue
            done = engine.dma.put_signal(dst + at, src + out, size, dst + flag, 77, **options)
            models[to][at : at + size] = models[of][out : out + size]
            models[to][flag : flag + 8] = (77).to_bytes(8, "little")
        assert done.wait(30) == size
        assert done.done() and done.bytes_done == size
    engine.flush()
    for node, buffer, model in zip(nodes, buffers, models, strict=True):
        assert node.read(buffer.gva, SIZE) == bytes(model)


def test_large_copies(place: Path) -> None:
    """Above the size that goes around the cache, at odd addresses, both ways."""
    with fabrex.Fabric.create(described(2), "lab", timing=False) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        size = (9 << 20) + 13
        a, b = h0.alloc(size + 64), h1.alloc(size + 64)
        data = random.Random(3).randbytes(size)
        h0.write(a.gva + 3, data)
        h0.dma.copy(b.gva + 3, a.gva + 3, size).wait()
        assert h1.read(b.gva + 3, size) == data
        assert h1.read(b.gva, 3) == bytes(3) and h1.read(b.gva + 3 + size, 8) == bytes(8)
        h1.dma.copy(a.gva + 4, b.gva + 3, size).wait()
        assert h0.read(a.gva + 4, size) == data


def test_what_was_never_written_copies_as_zeros(three: Three) -> None:
    fabric, h0, h1, _ = three
    target = h1.alloc(4096)
    h1.write(target.gva, b"x" * 4096)
    h0.dma.copy(target.gva, fabric.gva("host0") + (32 << 20), 4096, visible=True).wait()
    assert h1.read(target.gva, 4096) == bytes(4096)


Refused = Callable[[fabrex.Fabric, fabrex.Node, int, int], fabrex.Completion]
REFUSED: list[tuple[str, type[fabrex.FabricError], Refused]] = [
    ("overlap", fabrex.InvalidArgument, lambda f, n, a, b: n.dma.copy(a, a + 99, 100)),
    ("rows overlap", fabrex.InvalidArgument, lambda f, n, a, b: n.dma.copy_2d(a, a + 640, 64, 20, 64, 64)),
    ("leaves the region", fabrex.AddressError, lambda f, n, a, b: n.dma.copy(f.gva("host1") + (64 << 20) - 50, a, 51)),
    ("reads behind the region", fabrex.AddressError, lambda f, n, a, b: n.dma.copy(a, f.gva("host1") + (64 << 20) - 50, 51)),
    ("no region", fabrex.AddressError, lambda f, n, a, b: n.dma.copy(b, 7, 8)),
    ("no address", fabrex.AddressError, lambda f, n, a, b: n.dma.copy(b, (1 << 63) - 8, 64)),
    ("a piece", fabrex.AddressError, lambda f, n, a, b: n.dma.copy_list([(b, a, 8), (b + 8, 1 << 62, 8)])),
    ("signal elsewhere", fabrex.InvalidArgument, lambda f, n, a, b: n.dma.put_signal(b, a, 8, a + 64, 1)),
    ("signal at an odd address", fabrex.AlignmentError, lambda f, n, a, b: n.dma.put_signal(b, a, 8, b + 9, 1)),
]


@pytest.mark.parametrize(("error", "attempt"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_errors_are_completions(three: Three, error: type[fabrex.FabricError], attempt: Refused) -> None:
    """Nothing is moved, nothing hangs, and the engine goes on."""
    fabric, h0, h1, _ = three
    a, b = h0.alloc(4096), h1.alloc(4096)
    h1.write(b.gva, b"b" * 4096)
    done = attempt(fabric, h0, a.gva, b.gva)
    for _ in range(2):
        with pytest.raises(error):
            done.wait(10)
    assert done.done() and done.bytes_done == 0
    assert h1.read(b.gva, 4096) == b"b" * 4096
    h0.dma.copy(b.gva, a.gva, 4096, visible=True).wait(10)
    assert h1.read(b.gva, 4096) == bytes(4096)


def test_bad_arguments_raise_at_once(three: Three) -> None:
    _, h0, _, _ = three
    a = h0.alloc(4096)
    for attempt in (
        lambda: h0.dma.copy(a.gva, a.gva + 64, -1),
        lambda: h0.dma.copy(a.gva, a.gva + 64, 8, channel=2),
        lambda: h0.dma.copy(a.gva, a.gva + 64, 8, tc=8),
        lambda: h0.dma.fill(a.gva, 0, 8, width=3),
        lambda: h0.dma.copy_2d(a.gva, a.gva, 64, 2, 63, 64),
    ):
        with pytest.raises(fabrex.InvalidArgument):
            attempt()
    with pytest.raises(OverflowError):
        h0.dma.fill(a.gva, 256, 8)
    with pytest.raises(OverflowError):
        h0.dma.copy(-1, a.gva, 8)
    assert h0.dma.copy(0, 0, 0).wait() == 0


def test_windows_and_permissions(place: Path) -> None:
    with fabrex.Fabric.create(described(2, windows="manual"), "lab", timing=False) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        a, b = h0.alloc(8192), h1.alloc(8192)
        with pytest.raises(fabrex.NoWindow):
            h0.dma.copy(b.gva, a.gva, 8).wait()
        window = h0.ntb.windows[3]
        window.set_translation("host1", address=b.gva - fabric.gva("host1"), size=4096, perm="rw")
        h0.store(a.gva, 5)
        h0.dma.copy(window.address, a.gva, 4096).wait()
        assert h1.load(b.gva) == 5
        done = h0.dma.copy(window.address, a.gva, 4097)
        with pytest.raises(fabrex.AddressError):
            done.wait()
        assert done.bytes_done == 0
        window.set_translation("host1", address=b.gva - fabric.gva("host1"), size=4096, perm="r")
        with pytest.raises(fabrex.CompleterAbort):
            h0.dma.copy(window.address, a.gva, 8).wait()
        h0.dma.copy(a.gva + 4096, window.address, 8).wait()
        assert h0.load(a.gva + 4096) == 5


def test_a_full_channel(slow: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    _, h0, h1 = slow
    a, b = h0.alloc(64), h1.alloc(64)
    under_way = [h0.dma.copy(a.gva, b.gva, 8) for _ in range(64)]
    with pytest.raises(fabrex.QueueFull):
        h0.dma.copy(a.gva, b.gva, 8)
    h0.dma.copy(a.gva, b.gva, 8, channel=1)  # another has room
    assert all(done.cancel() for done in under_way[1:])
    under_way[0].wait(10)
    h0.dma.copy(a.gva, b.gva, 8).cancel()


def test_cancel(slow: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    """Nothing lands after it, and others go on."""
    _, h0, h1 = slow
    a, b = h0.alloc(4096), h1.alloc(4096)
    h0.store(a.gva, 1)
    first, second = h0.dma.copy(a.gva + 64, b.gva, 64), h0.dma.copy(a.gva + 128, b.gva, 64)
    assert not first.done() and first.bytes_done == 0
    with pytest.raises(fabrex.WaitTimeout):
        first.wait(0.001)
    assert first.cancel() and not first.cancel()
    with pytest.raises(fabrex.Cancelled):
        first.wait()
    assert second.wait(10) == 64 and not second.cancel()


def test_done_is_issued_and_visible_is_there(slow: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    _, h0, h1 = slow
    a, b = h0.alloc(4096), h1.alloc(4096)
    h0.write(a.gva, b"a" * 4096)
    assert h0.dma.copy(b.gva, a.gva, 4096).wait() == 4096
    h0.write(a.gva, b"z" * 4096)  # its own again
    assert h1.read(b.gva, 4096) == bytes(4096)  # still on its way
    h0.flush("host1")
    assert h1.read(b.gva, 4096) == b"a" * 4096
    h0.dma.copy(b.gva, a.gva, 4096, visible=True).wait()
    assert h1.read(b.gva, 4096) == b"z" * 4096


def test_a_link_goes_down_midway(slow: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    fabric, h0, h1 = slow
    a, b = h0.alloc(1 << 20), h1.alloc(1 << 20)
    done = [h0.dma.copy(a.gva, b.gva, 1 << 20), h0.dma.copy(b.gva, a.gva, 64, visible=True, channel=1)]
    link = next(iter(fabric.links.values()))
    link.down()
    for completion in done:
        with pytest.raises(fabrex.LinkDown):
            completion.wait(10)
        assert completion.bytes_done < completion.size or completion is done[1]
    link.up()
    assert h0.dma.copy(a.gva, b.gva, 64).wait(10) == 64


def test_a_peer_dies(place: Path, children: Callable[..., Child]) -> None:
    with fabrex.Fabric.create(described(2), "lab", timing=False) as fabric:
        h0 = fabric.attach("host0")
        child = children(
            """
            fabric = fabrex.Fabric.open("lab"); node = fabric.attach("host1"); say(node.alloc(4096).gva); hear()
            """
        )
        gva, local = child.hear(), h0.alloc(4096)
        h0.dma.copy(gva, local.gva, 4096).wait()
        child.kill()

        def lost() -> bool:
            try:
                h0.dma.copy(gva, local.gva, 4096).wait()
            except fabrex.PeerLost:
                return True
            return False

        assert eventually(lost)


def test_closing_ends_what_is_under_way(slow: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    fabric, h0, h1 = slow
    a, b = h0.alloc(64), h1.alloc(64)
    done = h0.dma.copy(a.gva, b.gva, 8)
    h0.close()
    with pytest.raises(fabrex.ClosedHandle):
        done.wait(10)
    with pytest.raises(fabrex.ClosedHandle):
        h0.dma.copy(a.gva, b.gva, 8)
    other = h1.dma.copy(b.gva, a.gva, 8)
    fabric.close()
    with pytest.raises(fabrex.ClosedHandle):
        other.wait(10)


def test_a_buffer_freed_meanwhile_is_kept_back(slow: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    _, h0, h1 = slow
    a, b = h0.alloc(4096), h1.alloc(4096)
    done = h0.dma.copy(a.gva, b.gva, 4096)
    b.free()
    with pytest.raises(fabrex.StaleHandle):
        b.free()
    assert h1.alloc(4096).gva != b.gva
    done.wait(10)
    assert h1.alloc(4096).gva == b.gva


def test_awaiting_and_selecting(slow: tuple[fabrex.Fabric, fabrex.Node, fabrex.Node]) -> None:
    _, h0, h1 = slow
    a, b = h0.alloc(4096), h1.alloc(4096)

    async def program() -> list[int]:
        copies = [h0.dma.copy(a.gva, b.gva, 64), h0.dma.copy(a.gva + 64, b.gva, 32, channel=1)]
        one = copies[0]

        async def wait(done: fabrex.Completion) -> int:
            return await done

        return await asyncio.gather(wait(one), wait(one), wait(copies[1]))

    assert asyncio.run(program()) == [64, 64, 32]
    done = h0.dma.copy(a.gva, b.gva, 64)
    assert not select.select([done], [], [], 0)[0]
    assert select.select([done], [], [], 30)[0] == [done] and done.done()
    late = h0.dma.copy(a.gva, a.gva + 64, 8)
    late.wait()
    assert select.select([late], [], [], 0)[0] == [late]


@pytest.mark.parametrize("timing", [False, True])
def test_a_signal_is_never_before_its_data(place: Path, children: Callable[..., Child], timing: bool) -> None:
    """A peer process polls the flag and looks at the data."""
    with fabrex.Fabric.create(described(2), "lab", timing=timing) as fabric:
        h0 = fabric.attach("host0")
        child = children(
            """
            fabric = fabrex.Fabric.open("lab"); node = fabric.attach("host1"); inbox = node.alloc(1 << 16, name="inbox")
            say("ready")
            bad = 0
            for round in range(1, 41):
                node.wait_until(inbox.gva, "==", round, timeout=20)
                data = node.read(inbox.gva + 64, 50000)
                bad += data != bytes([round]) * 50000
                fabric.put("seen", str(round).encode())
            say(bad)
            """
        )
        child.expect("ready")
        inbox, local = fabric.buffer("inbox"), h0.alloc(1 << 16)
        for number in range(1, 41):
            h0.dma.fill(local.gva, number, 50000).wait()
            h0.dma.put_signal(inbox.gva + 64, local.gva, 50000, inbox.gva, number).wait()
            assert eventually(lambda n=number: fabric.get("seen", timeout=5) == str(n).encode(), 20)
        child.expect(0)
        child.finish()


@pytest.mark.parametrize("tags", [1, 8, 32])
def test_time_agrees_with_the_estimate(place: Path, tags: int) -> None:
    """By the model's own clock: nothing here looks at real time."""
    with fabrex.Fabric.create(described(2, tags=tags), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        size = 1 << 20
        a, b = h0.alloc(size), h1.alloc(size)
        taken = {}
        for kind, dst, src in (("dma_write", b.gva, a.gva), ("dma_read", a.gva, b.gva)):
            done = h0.dma.copy(dst, src, size)
            done.wait()
            assert done.kind == kind
            taken[kind] = done.completes_ps - done.issued_ps
            assert taken[kind] == pytest.approx(h0.estimate(kind, b.gva, size)["completes_ps"], rel=0.03)
        trip = h0.estimate("dma_read", b.gva, 512)["completes_ps"] - 500_000
        bound = (size // 512) * trip // tags  # tags * MRRS in each round trip
        if tags == 1:
            assert taken["dma_read"] == pytest.approx(bound + 500_000, rel=0.02)
        assert taken["dma_read"] >= 0.98 * bound
        assert taken["dma_read"] > taken["dma_write"]
        counted = fabric.fidelity()
        assert counted["dma_read"]["count"] == 1 and counted["dma_write"]["count"] == 1
        assert counted["dma_read"]["bytes"] == size
        assert h0.estimate("dma_write", b.gva, 2 * size)["wire_bytes"] == 2 * size * (256 + 24) // 256


def test_two_channels_share_a_link(place: Path) -> None:
    with fabrex.Fabric.create(described(2, dilation=STRETCH), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        size = 1 << 20
        a, b = h0.alloc(2 * size), h1.alloc(2 * size)
        for node, buffer in ((h0, a), (h1, b)):
            node.dma.fill(buffer.gva, 1, 2 * size).wait()
        alone = h0.dma.copy(b.gva, a.gva, size)
        alone.wait()
        both = [h0.dma.copy(b.gva + i * size, a.gva + i * size, size, channel=i) for i in (0, 1)]
        for done in both:
            done.wait()
        spent = max(d.completes_ps for d in both) - both[0].issued_ps
        assert spent > 1.7 * (alone.completes_ps - alone.issued_ps)


def test_the_engine_uses_no_processor_while_idle(place: Path) -> None:
    with fabrex.Fabric.create(described(2), "lab", timing=True) as fabric:
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        a, b = h0.alloc(1 << 20), h1.alloc(1 << 20)
        h0.dma.copy(b.gva, a.gva, 1 << 20).wait()
        time.sleep(0.05)
        before = os.times()
        time.sleep(0.4)
        after = os.times()
        assert after.user + after.system - before.user - before.system < 0.2


def test_a_dropped_completion_still_happens(three: Three) -> None:
    _, h0, h1, _ = three
    a, b = h0.alloc(1 << 20), h1.alloc(1 << 20)
    h0.write(a.gva, b"q" * (1 << 20))
    for _ in range(300):
        while True:
            try:
                h0.dma.copy(b.gva, a.gva, 1 << 12)
                break
            except fabrex.QueueFull:
                time.sleep(0.001)
    h0.dma.copy(b.gva, a.gva, 1 << 20, visible=True).wait()
    assert h1.read(b.gva, 1 << 20) == b"q" * (1 << 20)


def test_threads_share_an_engine(three: Three) -> None:
    _, h0, h1, _ = three
    a, b = h0.alloc(SIZE), h1.alloc(SIZE)
    h0.write(a.gva, bytes(range(256)) * (SIZE // 256))
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(60):
                at = (i % 8) * 1024
                done = h0.dma.copy(b.gva + number * 16384 + at, a.gva + at, 1000, channel=number % 2, visible=True)
                assert done.wait(30) == 1000
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    for number in range(4):
        assert h1.read(b.gva + number * 16384, 1000) == h0.read(a.gva, 1000)


def test_after_fork_the_child_is_told(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab", timing=False) as fabric:
        h0 = fabric.attach("host0")
        a = h0.alloc(1 << 20)
        done = h0.dma.copy(a.gva, a.gva + 4096, 64)
        done.wait()
        pid = os.fork()
        if not pid:
            answers = 0
            for attempt in (done.wait, done.done, done.cancel, done.fileno, lambda: h0.dma.copy(a.gva, a.gva + 64, 8)):
                try:
                    attempt()
                except fabrex.ClosedHandle:
                    answers += 1
            os._exit(answers)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
        assert h0.dma.copy(a.gva, a.gva + 4096, 64).wait() == 64


@pytest.mark.parametrize("timing", [False, True])
def test_a_process_killed_midway_leaves_nothing_held(place: Path, children: Callable[..., Child], timing: bool) -> None:
    """Its buffers' memory, the links, the queues and the engine's slots serve the next one."""
    with fabrex.Fabric.create(described(2), "lab", timing=timing) as fabric:
        h0 = fabric.attach("host0")
        a = h0.alloc(1 << 20)
        for number in range(4):
            child = children(
                """
                fabric = fabrex.Fabric.open("lab"); node = fabric.attach("host1")
                mine, theirs = node.alloc(1 << 20), arguments[0]
                say("goes")
                while True:
                    node.dma.copy(theirs, mine.gva, 1 << 20).wait()
                    node.dma.copy(mine.gva, theirs, 1 << 20, visible=True).wait()
                """,
                a.gva,
            )
            child.expect("goes")
            time.sleep(0.02 + 0.013 * number)
            child.kill()
            link = next(iter(fabric.links.values()))
            link.down()
            link.up()
            client = fabric.attach("host0")
            assert client.dma.copy(a.gva, a.gva + 4096, 4096, visible=True).wait(10) == 4096
            client.close()
        h1 = fabric.attach("host1")
        b = h1.alloc(1 << 20)
        h1.write(b.gva, b"k" * 4096)
        assert h1.dma.copy(a.gva, b.gva, 4096, visible=True).wait(10) == 4096
        assert h0.read(a.gva, 4096) == b"k" * 4096
        assert fabric.info()["counters"]["corrupt_resets"] == 0
