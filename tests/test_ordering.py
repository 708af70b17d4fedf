# SPDX-License-Identifier: Apache-2.0
"""The adversary in real time: what no rule permits never happens, what one permits happens soon. tests/litmus has every cell."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Child

import fabrex

pytest_plugins = ["helpers"]

TRIES = 120
Start = Callable[..., Child]


def two_ways(wc: bool = False) -> fabrex.Topology:
    """Two hosts with a link to each of two switches."""
    host = {"kind": "host", "memory": {"dram": "4MiB"}} | ({"pio": {"wc": True}} if wc else {})
    return fabrex.Topology.from_dict({
        "fabrex": 1,
        "name": "two-ways",
        "nodes": {"host0": dict(host), "host1": dict(host), "sw0": {"kind": "switch"}, "sw1": {"kind": "switch"}},
        "links": [
            {"endpoints": [f"host{h}:p{k}", f"sw{k}:p{h}"], "pcie": {"gen": 4, "lanes": 16}, "delay": "5ns"}
            for k in range(2)
            for h in range(2)
        ],
    })  # fmt: skip


@pytest.mark.parametrize("timing", ["on", "off"])
@pytest.mark.parametrize("machines", [1, 2])
def test_reads_push_the_writes_of_their_path_and_class(place: Path, timing: str, machines: int) -> None:
    described = two_ways().to_dict() | {"timing": timing}
    if machines == 2:
        described["machines"] = {"m0": {"nodes": ["host0", "sw0", "sw1"]}, "m1": {"nodes": ["host1"]}}
    topology = fabrex.Topology.from_dict(described)
    with contextlib.ExitStack() as stack:
        if machines == 1:
            fabric = stack.enter_context(fabrex.Fabric.create(topology, ordering="adversarial", seed=3))
        else:
            fabric = stack.enter_context(fabrex.Fabric.host(topology, ordering="adversarial", seed=3))
            (there := place / "there").mkdir()
            stack.callback(there.rmdir)
            stack.enter_context(fabrex.Fabric.join(fabric.agent.where, "m1", directory=str(there)))
            fabric.agent.wait_for(timeout=10)
        node = stack.enter_context(fabric.attach("host0"))
        gva = fabric.gva("host1", 1024)
        for i in range(1, 60):
            for way in ({"path": 1}, {"tc": 1}, {}):
                node.store(gva, i, **way)
                assert int.from_bytes(node.read(gva, 8, **way), "little") == i
                node.write(gva, (i << 8).to_bytes(8, "little"), **way)
                assert node.load(gva, **way) == i << 8


class Lab:
    """A writer with two handles, a reader, and the words that they pass."""

    def __init__(self, fabric: fabrex.Fabric) -> None:
        self.fabric = fabric
        self.writer, self.reader = fabric.attach("host0"), fabric.attach("host1")
        self.other = fabric.attach("host0", "client")
        self.data, self.flag = fabric.gva("host1", 0), fabric.gva("host1", 64)
        self.buffer = self.writer.alloc(4096)

    def stale(self, send: Callable[[int], None], tries: int = TRIES) -> int:
        """How often the reader sees the flag of a message and not its data."""
        count = 0
        for i in range(1, tries + 1):
            send(i)
            self.reader.wait_until(self.flag, "==", i, timeout=10)
            count += self.reader.load(self.data) != i
            self.writer.flush("host1")
        return count


@pytest.fixture
def lab(place: Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    with fabrex.Fabric.create(two_ways(getattr(request, "param", False)), "lab", ordering="adversarial", seed=11) as fabric:
        yield Lab(fabric)


def steps(lab: Lab, data: dict[str, Any], between: str, flag: dict[str, Any], by_other: bool = False) -> Callable[[int], None]:
    def send(i: int) -> None:
        lab.writer.store(lab.data, i, **data)
        if between == "flush":
            lab.writer.flush("host1")
        elif between:
            getattr(lab.writer, between)()
        (lab.other if by_other else lab.writer).store(lab.flag, i, **flag)

    return send


@pytest.mark.parametrize(
    ("data", "between", "flag"),
    [
        pytest.param({}, "", {}, id="plain"),
        pytest.param({"ro": True}, "", {}, id="a strong write passes nothing"),
        pytest.param({}, "", {"ido": True}, id="IDO of the same requester"),
        pytest.param({"tc": 3}, "", {"tc": 3}, id="one class"),
        pytest.param({"path": 1}, "", {"path": 1}, id="one path"),
        pytest.param({}, "flush", {"ro": True}, id="RO behind a flush"),
        pytest.param({}, "flush", {"path": 1}, id="another path behind a flush"),
        pytest.param({"tc": 1}, "flush", {}, id="another class behind a flush"),
        pytest.param({}, "fence", {"ro": True}, id="RO behind a fence"),
        pytest.param({"path": 1}, "fence", {"tc": 2}, id="class and path behind a fence"),
    ],
)
def test_what_is_forbidden_never_happens(lab: Lab, data: dict[str, Any], between: str, flag: dict[str, Any]) -> None:
    assert lab.stale(steps(lab, data, between, flag)) == 0


@pytest.mark.parametrize(
    ("data", "between", "flag", "by_other"),
    [
        pytest.param({}, "", {"ro": True}, False, id="RO"),
        pytest.param({}, "", {"ido": True}, True, id="IDO of another requester"),
        pytest.param({}, "", {"tc": 1}, False, id="another class"),
        pytest.param({"path": 1}, "", {}, False, id="another path"),
        pytest.param({}, "drain", {"ro": True}, False, id="drain is no fence"),
    ],
)
def test_what_is_permitted_happens(lab: Lab, data: dict[str, Any], between: str, flag: dict[str, Any], by_other: bool) -> None:
    assert lab.stale(steps(lab, data, between, flag, by_other)) > 0


@pytest.mark.parametrize("lab", [True], indirect=True)
@pytest.mark.parametrize(("between", "passes"), [("", True), ("drain", False), ("fence", False), ("flush", False)])
def test_write_combining(lab: Lab, between: str, passes: bool) -> None:
    assert (lab.stale(steps(lab, {}, between, {})) > 0) == passes


@pytest.mark.parametrize("default", ["node", "window"])
def test_defaults(lab: Lab, default: str) -> None:
    """RO by default of a handle or of a window, which the operation does not mention."""
    if default == "node":
        lab.writer.order(ro=True)
        assert lab.stale(steps(lab, {}, "", {})) > 0
        lab.writer.order()
        assert lab.stale(steps(lab, {}, "", {})) == 0
        return
    window = lab.writer.ntb.windows[0 if lab.data >> 40 != 1 else 1]
    window.set_translation("host1", 0, 65536, ro=True)
    lab.flag = lab.fabric.gva("host1", 64)

    def send(i: int) -> None:
        lab.writer.store(lab.data, i)
        lab.writer.store(window.address + 64, i)

    assert lab.stale(send) > 0


def test_an_atomic_with_ro_passes_the_data(lab: Lab) -> None:
    def send(ro: bool) -> Callable[[int], None]:
        def send_(i: int) -> None:
            lab.writer.store(lab.data, i)
            lab.writer.swap(lab.flag, i, ro=ro)

        return send_

    assert lab.stale(send(True), 60) > 0
    lab.writer.store(lab.flag, 0)
    lab.writer.flush()
    assert lab.stale(send(False), 60) == 0


def test_doorbells_and_scratchpads_come_behind_the_data(lab: Lab) -> None:
    for i in range(1, TRIES // 2):
        lab.writer.store(lab.data, i)
        lab.writer.ntb.peer_spad_write("host1", 0, i)
        while lab.reader.ntb.spad_read(0) != i:
            lab.reader.progress()
        assert lab.reader.load(lab.data) == i


def test_put_signal(lab: Lab) -> None:
    for i in range(1, 60):
        lab.writer.write(lab.buffer.gva, i.to_bytes(8, "little") * 512)
        lab.writer.dma.put_signal(
            dst=lab.fabric.gva("host1", 4096), src=lab.buffer.gva, size=4096, signal=lab.flag, value=i, ro=bool(i % 2)
        )
        lab.reader.wait_until(lab.flag, "==", i, timeout=10)
        if not i % 2:
            assert lab.reader.read(lab.fabric.gva("host1", 4096), 4096) == i.to_bytes(8, "little") * 512


def test_done_is_not_visible(lab: Lab) -> None:
    """A completion says that the source may be used again; only `visible` says that the target has it."""
    late = 0
    for i in range(1, 60):
        lab.writer.store(lab.buffer.gva, i)
        lab.writer.dma.copy(dst=lab.data, src=lab.buffer.gva, size=8).wait(5)
        lab.writer.store(lab.buffer.gva, 0)
        late += lab.reader.load(lab.data) != i
        lab.writer.flush()
        assert lab.reader.load(lab.data) == i
        lab.writer.store(lab.buffer.gva, -i % (1 << 64))
        lab.writer.dma.copy(dst=lab.data, src=lab.buffer.gva, size=8, visible=True).wait(5)
        assert lab.reader.load(lab.data) == -i % (1 << 64)
    assert late


def test_wide_accesses_tear_and_words_do_not(lab: Lab) -> None:
    torn = 0
    for i in range(1, 400):
        lab.writer.store(lab.data, b"".join(i.to_bytes(8, "little") for _ in range(8)), size=64)
        words = []
        while not words or words[0] != i:  # one write becomes visible in increasing addresses
            found = lab.reader.read(lab.data, 64)
            words = [int.from_bytes(found[k : k + 8], "little") for k in range(0, 64, 8)]
            assert set(words) <= {i - 1, i} and words == sorted(words, reverse=True)
        torn += words[-1] != i
        lab.writer.flush()
        if torn:
            break
    assert torn


def test_every_kind_of_operation_agrees_with_a_model(place: Path) -> None:
    """Once it is flushed all of it is there, whatever was delayed, torn and passed on the way."""
    import random

    for seed in range(6):
        noise = random.Random(seed)
        with fabrex.Fabric.create("fabrex-pair", ordering="adversarial", seed=seed) as fabric:
            a, b = fabric.attach("host0"), fabric.attach("host1")
            buffer, source, model = a.alloc(1 << 16), b.alloc(1 << 16), bytearray(1 << 16)
            for _ in range(40):
                offset, size, kind = noise.randrange(60000), noise.randrange(1, 5000), noise.randrange(6)
                data, word = noise.randbytes(size), offset & ~63
                if kind == 0:
                    b.store(buffer.gva + word, 7, ro=True, tc=1)
                    b.flush()
                    model[word : word + 8] = (7).to_bytes(8, "little")
                elif kind == 1:
                    b.write(buffer.gva + offset, data, ro=size % 2 == 0)
                    b.flush()
                    model[offset : offset + size] = data
                elif kind == 2:
                    assert b.read(buffer.gva + offset, size) == model[offset : offset + size]
                elif kind == 3:
                    b.write(source.gva, data)
                    b.dma.copy(dst=buffer.gva + offset, src=source.gva, size=size, visible=True).wait(5)
                    model[offset : offset + size] = data
                elif kind == 4:
                    b.dma.copy(dst=source.gva, src=buffer.gva + offset, size=size).wait(5)
                    assert b.read(source.gva, size) == model[offset : offset + size]
                else:
                    old = int.from_bytes(model[word : word + 8], "little")
                    assert b.fetch_add(buffer.gva + word, 3) == old
                    model[word : word + 8] = ((old + 3) % (1 << 64)).to_bytes(8, "little")
            assert a.read(buffer.gva, 1 << 16) == bytes(model)
            assert fabric.info()["counters"]["corrupt_resets"] == 0


def test_a_missing_flush_between_processes(place: Path, children: Start) -> None:
    """Message passing over two classes: found within a thousand tries in real time."""
    code = """
        fabric = fabrex.Fabric.open("lab")
        node, gva = fabric.attach("host0"), fabric.gva
        say("ready")
        for i in range(1, 1001):
            node.wait_until(gva("host0", 0), ">=", i, timeout=30)
            node.store(gva("host1", 0), i)
            node.store(gva("host1", 64), i, ro=True)
        """
    with fabrex.Fabric.create("fabrex-pair", "lab", ordering="adversarial", seed=3) as fabric:
        node, gva = fabric.attach("host1"), fabric.gva
        child = children(code)
        child.expect("ready")
        for i in range(1, 1001):
            node.store(gva("host0", 0), i)
            node.wait_until(gva("host1", 64), "==", i, timeout=30)
            if node.load(gva("host1", 0)) != i:
                break
        else:
            pytest.fail("the adversary found nothing in 1,000 tries")


def test_a_path_that_is_not_there(place: Path) -> None:
    with fabrex.Fabric.create("fabrex-pair", timing=True) as fabric:
        node = fabric.attach("host0")
        for path in (1, 4, 300):
            with pytest.raises(fabrex.InvalidArgument, match="path"):
                node.store(fabric.gva("host1"), 1, path=path)
        with pytest.raises(ValueError, match="traffic classes"):
            node.store(fabric.gva("host1"), 1, tc=8)
        with pytest.raises(fabrex.InvalidArgument):
            node.order(tc=8)


def test_a_cache_that_nobody_keeps_coherent(place: Path) -> None:
    with fabrex.Fabric.create("fabrex-pair", ordering="adversarial", seed=5) as fabric:
        near, far = fabric.attach("host0"), fabric.attach("host1", stale=True)
        gva, old, unseen = fabric.gva("host0"), 0, 0
        for i in range(1, 100):
            far.load(gva)
            near.store(gva, i)
            old += far.load(gva) != i
            far.invalidate(gva)
            assert far.load(gva) == i
            far.store(gva + 64, i)
            far.flush("host0")  # writes no cache back
            unseen += near.load(gva + 64) != i
            assert far.load(gva + 64) == i, "it sees its own"
            far.writeback(gva + 64)
            far.flush("host0")
            assert near.load(gva + 64) == i
        assert old and unseen
        far.write(gva + 200, b"several lines " * 20)
        assert far.read(gva + 200, 280) == b"several lines " * 20
        assert far.fetch_add(gva + 200 & ~7, 0) == far.load(gva + 200 & ~7)
        far.writeback(gva + 200, 280)
        far.flush()
        assert near.read(gva + 200, 280) == b"several lines " * 20
        with pytest.raises(fabrex.WaitTimeout):
            far.wait_until(gva, "==", 12345, timeout=0.001)
        far.wait_until(gva, "==", 99, timeout=5)
        with pytest.raises(fabrex.AddressError):
            far.store(5 << 40, 1)


@pytest.mark.parametrize("ordering", ["posted", "adversarial"])
def test_raw_views_belong_between_acquire_and_release(place: Path, ordering: str) -> None:
    with fabrex.Fabric.create("fabrex-pair", ordering=ordering, seed=1) as fabric:
        a, b = fabric.attach("host0"), fabric.attach("host1")
        buffer = a.alloc(10_000)
        array = buffer.numpy("u1")
        b.write(buffer.gva, b"x" * 10_000)
        b.flush()
        a.progress()
        assert bytes(array[:3]) == (b"xxx" if ordering == "posted" else bytes(3)), "unseen without acquire"
        with buffer.access() as view:
            assert bytes(view) == bytes(array) == b"x" * 10_000
            view[5:8] = b"abc"
            b.store(buffer.gva + 8, 7)
            b.flush()
        assert b.read(buffer.gva, 16) == b"xxxxxabc" + (7).to_bytes(8, "little"), "what others wrote beside it stays"
        array[100] = 1
        assert b.load(buffer.gva + 100, size=1) == (1 if ordering == "posted" else ord("x")), "unseen without release"


def test_without_time_the_adversary_counts_operations(place: Path) -> None:
    """Delays are of operations then: a write stays away while nothing happens, and others' operations bring it on."""
    with fabrex.Fabric.create("fabrex-pair", ordering="adversarial", timing=False, seed=2) as fabric:
        near, far = fabric.attach("host0"), fabric.attach("host1")
        gva = fabric.gva("host1", 64)
        assert not fabric.timing and fabric.fidelity() == {}, "nothing counted is late"
        late = 0
        for i in range(1, 400):
            near.store(gva, i)
            looks = 0
            while far.load(gva) != i:
                looks += 1
            late += looks > 20
            near.flush("host1")
        assert late, "never unfair"
        before = fabric.info()["now_ps"]
        time.sleep(0.05)
        assert fabric.info()["now_ps"] - before < 10**9, "50 ms of sleep are not a millisecond of counted time"
        begin = time.monotonic()
        with pytest.raises(fabrex.WaitTimeout):
            far.wait_until(gva, "==", 0, timeout=0.05)
        assert time.monotonic() - begin < 20


def test_counted_time_passes_for_who_sleeps(place: Path) -> None:
    """Else what is waited for with a timeout, and does not come, would be waited for without an end."""
    with fabrex.Fabric.create("fabrex-pair", ordering="adversarial", timing=False) as fabric, fabric.attach("host0") as near:
        begin = time.monotonic()
        before = near.now_ps
        near.sleep(0.05)
        assert near.now_ps - before >= 50 * 10**9
        with pytest.raises(fabrex.WaitTimeout):
            near.barrier("alone", timeout=0.05, size=2)
        with pytest.raises(fabrex.WaitTimeout):
            fabric.get("never", timeout=0.05)

        async def awaits() -> int:
            return int(await near.begin("fetch_add", fabric.gva("host1", 64), 1))

        assert asyncio.run(awaits()) == 0
        assert time.monotonic() - begin < 20
