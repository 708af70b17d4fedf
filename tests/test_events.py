# SPDX-License-Identifier: Apache-2.0
"""Events: what is told, in which order, to any number of processes; what a slow reader misses; waiting without a processor."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Child, control_path, eventually, persistent, topology

import fabrex

pytest_plugins = ["helpers"]

Start = Callable[..., Child]
LINK = "host0:ntb0-host1:ntb0"
KEPT = 1024


def kinds(fabric: fabrex.Fabric, since: int = 0) -> list[str]:
    return [event.kind for event in fabric.events(since)]


def test_what_happens_is_told_in_order(place: Path) -> None:
    with fabrex.Fabric.create(topology(2), "lab") as fabric:
        before = time.time_ns()
        h0, h1 = fabric.attach("host0"), fabric.attach("host1")
        link = fabric.links[LINK]
        link.set(delay="2us", gen=3)
        link.reset()
        link.down()
        link.down()  # no change, no event
        link.up()
        h1.ntb.link_disable()
        h1.ntb.link_enable()
        found = list(fabric.events())
        assert [event.kind for event in found] == [
            "fabric_up", "node_attached", "node_attached", "link_set", "link_set", "link_reset", "link_down", "link_up",
            "ntb_disabled", "ntb_enabled",
        ]  # fmt: skip
        assert [event.number for event in found] == list(range(len(found)))
        assert [event.time_ps for event in found] == sorted(event.time_ps for event in found)
        assert all(before - 10**9 < event.unix_ns <= time.time_ns() and event.lost == 0 for event in found)
        assert found[1].node == "host0" and found[1].details["role"] == "owner"
        assert [event.details for event in found[3:5]] == [{"delay_ps": 2_000_000}, {"gen": 3}]
        assert found[3].link == LINK and found[3].node is None
        assert found[8].node == "host1"
        h0.close()
        [gone] = fabric.events(len(found))
        assert (gone.kind, gone.node) == ("node_detached", "host0")
        assert pickle.loads(pickle.dumps(gone)) == gone
        assert list(fabric.events(10**6)) == []
        for wrong in (-1, 1.5, True, 1 << 70):
            with pytest.raises(fabrex.InvalidArgument):
                fabric.events(wrong)  # type: ignore[arg-type]


def test_windows_are_told(place: Path) -> None:
    from fabrex._handle import check, lib

    with fabrex.Fabric.create(topology(2, windows="manual"), "lab") as fabric:
        next_ = len(kinds(fabric))
        check(lib.fbx_mw_set_trans(fabric._live(), 0, 0, 1, 0, 1 << 20, 3, 1))
        check(lib.fbx_mw_clear_trans(fabric._live(), 0, 0))
        made, cleared = fabric.events(next_)
        assert (made.kind, made.node, made.link) == ("window_set", "host0", None)
        assert made.details == {"window": 0, "peer": "host1", "translation": "0x0000000000000000", "bytes": 1 << 20}
        assert (cleared.kind, cleared.node, cleared.details) == ("window_cleared", "host0", {"window": 0})


def test_lost_writes_are_told_together(place: Path) -> None:
    with fabrex.Fabric.create(topology(2), "lab") as fabric:
        node = fabric.attach("host0")
        fabric.attach("host1")
        fabric.links[LINK].down()
        next_ = len(kinds(fabric))
        for i in range(5000):
            node.store(fabric.gva("host1"), i)
        told = lambda: [e for e in fabric.events(next_) if e.kind == "writes_dropped"]  # noqa: E731
        assert eventually(lambda: sum(e.details["count"] for e in told()) == 5000)
        assert told()[-1].details["total"] == 5000 and told()[-1].node == "host1"
        assert len(told()) < 500
        assert eventually(lambda: sum(e.details["count"] for e in fabric.events(next_) if e.kind == "aer") == 5000)


def test_failed_dma_is_told(place: Path) -> None:
    with fabrex.Fabric.create(topology(2), "lab") as fabric:
        node = fabric.attach("host0")
        fabric.attach("host1")
        fabric.links[LINK].down()
        for _ in range(20):
            with pytest.raises(fabrex.LinkDown):
                node.dma.copy(dst=fabric.gva("host1"), src=fabric.gva("host0"), size=64).wait()
        told = [event for event in fabric.events() if event.kind == "dma_failed"]
        assert told[0].node == "host0" and told[0].details == {"error": "LinkDown", "more": 0}
        assert len(told) + sum(event.details["more"] for event in told) <= 20


def test_a_death_is_told_and_the_end(place: Path, children: Start) -> None:
    with persistent(topology(2)) as fabric:
        seen = fabrex.Events.observe("lab", follow=True, timeout=10)
        owner = children("""
            fabric = fabrex.Fabric.open("lab")
            node = fabric.attach("host1")
            say("here")
            hear()
        """)
        owner.expect("here")
        owner.kill()
        lost = next(event for event in seen if event.kind == "node_lost")
        assert (lost.node, lost.details) == ("host1", {"pid": owner.pid})
        fabric.close()
        fabrex.Fabric.destroy("lab")  # whoever looks on does not count as attached
        assert [event.kind for event in seen][-1] == "fabric_down"
        assert list(seen) == []
        seen.close()
        with pytest.raises(fabrex.ClosedHandle):
            next(seen)
        with pytest.raises(fabrex.FabricNotFound):
            fabrex.Events.observe("lab")


def test_followers_of_an_owned_fabric_end_with_its_owner(place: Path, children: Start) -> None:
    owner = children("""
        fabric = fabrex.Fabric.create("fabrex-pair", "lab")
        say("here")
        hear()
    """)
    owner.expect("here")
    seen = fabrex.Events.observe("lab", follow=True, timeout=20)
    assert next(seen).kind == "fabric_up"
    owner.kill()
    assert list(seen) == []  # nobody was left who could tell
    seen.close()
    assert fabrex.Fabric.prune() >= 1


def test_an_observer_can_only_look(place: Path) -> None:
    from fabrex._handle import FabricHandle, ffi, lib

    with persistent(topology(2)) as fabric:
        seen = fabrex.Events.observe("lab")
        handle: FabricHandle = seen._handle
        out = ffi.new("fbx_node **")
        for code in (
            lib.fbx_node_attach(handle.pointer, b"host0", 0, out),
            lib.fbx_link_set(handle.pointer, 0, 0),
            lib.fbx_link_configure(handle.pointer, 0, 0, ffi.NULL),
            lib.fbx_put(handle.pointer, b"key", b"value", 5),
            lib.fbx_mw_clear_trans(handle.pointer, 0, 0),
            lib.fbx_fabric_reap(handle.pointer),
        ):
            assert code == lib.FBX_E_CLOSED
        assert fabric.info()["processes"] == 1
        seen.close()


def test_a_slow_reader_learns_what_it_missed(place: Path) -> None:
    with fabrex.Fabric.create(topology(2), "lab") as fabric:
        link = fabric.links[LINK]
        slow = fabric.events(follow=True, timeout=0)
        assert next(slow).number == 0
        for _ in range(KEPT):
            link.down()
            link.up()
        first = next(slow)
        assert first.lost == first.number - 1 == KEPT  # of 2049 the last 1024 are there
        rest = list(slow)
        assert len(rest) == KEPT - 1 and all(event.lost == 0 for event in rest)
        assert slow.lost == KEPT and slow.next == 2 * KEPT + 1
        assert len(list(fabric.events())) == KEPT, "whoever asks for what there is has missed nothing"
        assert fabric.events().lost == 0


def test_many_writers_and_readers(place: Path, children: Start) -> None:
    """Each reader sees each event once and whole, in one order for all, or counts it as missed."""
    writer = """
        fabric = fabrex.Fabric.open("lab")
        say("here")
        hear()
        for i in range(400):
            fabric.links["host0:ntb0-sw0:p0"].set(delay=f"{arguments[0] * 1000 + i}ps")
        say("done")
        hear()
    """
    reader = """
        seen = fabrex.Events.observe("lab", arguments[0], follow=True, timeout=2)
        say("here")
        found = [(e.number, e.details["delay_ps"]) for e in seen if e.kind == "link_set"]
        say(found, seen.lost)
    """
    with persistent(topology(3)) as fabric:
        first = len(kinds(fabric))
        writers = [children(writer, i + 1) for i in range(2)]
        readers = [children(reader, first) for _ in range(2)]
        for child in [*writers, *readers]:
            child.expect("here")
        for child in writers:
            child.tell("go")
        for child in writers:
            child.expect("done")
        stories = [child.hear() for child in readers]
        (one, lost), (two, _) = stories
        assert one == two and lost == 0
        numbers = [number for number, _ in one]
        assert numbers == sorted(set(numbers)) and len(one) == 800
        for i in (1, 2):
            mine = [delay - 1000 * i for _, delay in one if delay // 1000 == i]
            assert mine == list(range(400))


def test_waiting_costs_no_processor_and_ends_at_once(place: Path, children: Start) -> None:
    code = """
        seen = fabrex.Events.observe("lab", follow=True, timeout=20)
        next(seen)
        say("here")
        before = time.process_time()
        event = next(seen)
        late = time.time_ns() - event.unix_ns
        say(event.kind, time.process_time() - before, late)
    """
    with persistent(topology(2)) as fabric:
        child = children(code)
        child.expect("here")
        time.sleep(1.5)
        fabric.links[LINK].down()
        kind, used, late = child.hear()
        assert kind == "link_down"
        assert used < 0.05, "a second and a half of waiting, with two looks at whether the owner lives"
        assert late < 2e9


def test_a_scribbled_ring_harms_nobody(place: Path) -> None:
    import os
    import random

    noise = random.Random(5)
    with persistent(topology(2)) as fabric:
        for _ in range(50):
            fabric.links[LINK].down()
            fabric.links[LINK].up()
        path = control_path()
        data = path.read_bytes()[: 1 << 21]
        # The ring is found by its first event: number 1, then fabric time.
        first = next(iter(fabric.events()))
        at = data.index(first.time_ps.to_bytes(8, "little") + first.unix_ns.to_bytes(8, "little")) - 8
        ring = at - 64
        with path.open("r+b") as file:
            for _ in range(40):
                os.pwrite(file.fileno(), noise.randbytes(8), ring + 64 + noise.randrange(0, 64 * 110, 8))
        found = list(fabric.events())
        assert len(found) + fabric.events().lost <= 101
        seen = fabric.events()
        list(seen)
        assert seen.lost > 0
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), (1 << 63).to_bytes(8, "little"), ring)
        list(fabric.events(follow=True, timeout=0))
