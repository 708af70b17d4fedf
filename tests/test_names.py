# SPDX-License-Identifier: Apache-2.0
"""Names: values, buffers and barriers by which processes find each other."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Child, persistent, topology

import fabrex

pytest_plugins = ["helpers"]


def test_values_of_every_size_come_back_whole(place: Path) -> None:
    noise = random.Random(1)
    with fabrex.Fabric.create(topology(), "lab") as fabric:
        for size in (0, 1, 63, 64, 65, 4095, 4096, 4097, 100_000, 1 << 20):
            value = noise.randbytes(size)
            fabric.put("key", value)
            assert fabric.get("key") == value
        fabric.put("other", bytearray(b"abc"))
        fabric.put("other", memoryview(b"defgh")[1:])
        assert fabric.get("other") == b"efgh"


def test_the_largest_value_and_one_byte_more(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric:
        value = bytes(16 << 20)
        fabric.put("large", value)
        assert fabric.get("large") == value
        with pytest.raises(fabrex.OutOfFabricMemory):
            fabric.put("large", value + b"x")
        assert fabric.get("large") == value


def test_replacing_a_value_for_ever_fills_nothing(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric:
        noise = random.Random(2)
        for _ in range(3000):
            fabric.put("key", noise.randbytes(noise.choice((10, 5000, 70_000))))
        assert max(path.stat().st_blocks for path in place.iterdir()) * 512 < 4 << 20


def test_thousands_of_names(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric:
        for i in range(3000):
            fabric.put(f"k{i}", str(i).encode())
        assert all(fabric.get(f"k{i}") == str(i).encode() for i in range(3000))


def test_values_buffers_and_barriers_have_names_of_their_own(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric:
        node = fabric.attach("host0")
        fabric.put("x", b"value")
        buffer = node.alloc(4096, "x")
        node.barrier("x", size=1)
        assert fabric.get("x") == b"value" and fabric.buffer("x").gva == buffer.gva
        buffer.free()
        assert fabric.get("x") == b"value"
        with pytest.raises(fabrex.FabricNotFound):
            fabric.buffer("x")


@pytest.mark.parametrize("key", ["", "a b", ".a", "-a", "ü", "k" * 64, "a/b"])
def test_bad_keys(place: Path, key: str) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric:
        node = fabric.attach("host0")
        for attempt in (
            lambda: fabric.put(key, b""),
            lambda: fabric.get(key),
            lambda: fabric.buffer(key),
            lambda: node.barrier(key, timeout=0.01),
        ):
            with pytest.raises(fabrex.InvalidArgument):
                attempt()
        if key:
            with pytest.raises(fabrex.InvalidArgument):
                node.alloc(64, key)


@pytest.mark.parametrize("what", ["put", "get", "alloc", "buffer", "barrier", "attach", "create"])
def test_a_name_with_a_nul_is_refused_and_not_cut(place: Path, what: str) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric:
        node = fabric.attach("host0", "client")
        fabric.put("a", b"value")
        node.alloc(64, "a")
        attempts: dict[str, Callable[[], object]] = {
            "put": lambda: fabric.put("a\0b", b""),
            "get": lambda: fabric.get("a\0b"),
            "alloc": lambda: node.alloc(64, "c\0b"),
            "buffer": lambda: fabric.buffer("a\0b"),
            "barrier": lambda: node.barrier("a\0b", size=1),
            "attach": lambda: fabric.attach("host0\0b"),
            "create": lambda: fabrex.Fabric.create(topology(), "new\0b").close(),
        }
        with pytest.raises(fabrex.FabricError):
            attempts[what]()


def test_waiting_for_names(place: Path, children: Callable[..., Child]) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric:
        with pytest.raises(fabrex.FabricNotFound):
            fabric.get("key")
        for attempt in (lambda: fabric.get("key", timeout=0.02), lambda: fabric.buffer("key", timeout=0.02)):
            with pytest.raises(fabrex.WaitTimeout, match="key"):
                attempt()
        child = children(
            """
            fabric = fabrex.Fabric.open("lab")
            say("waits")
            say(fabric.get("key", timeout=None).decode())
            say(fabric.buffer("box", timeout=20).size)
            """
        )
        child.expect("waits")
        fabric.put("key", b"value")
        child.expect("value")
        fabric.attach("host0").alloc(12345, "box")
        child.expect(12345)
        child.finish()


def test_values_from_many_processes_are_never_torn(place: Path, children: Callable[..., Child]) -> None:
    code = """
        fabric = fabrex.Fabric.open("lab")
        for i in range(300):
            fabric.put("shared", bytes([arguments[0]]) * (1000 + 37 * (i % 100)))
            seen = fabric.get("shared")
            assert len(set(seen)) == 1, "two values in one"
        say("done")
        """
    with fabrex.Fabric.create(topology(), "lab"):
        for child in [children(code, number) for number in range(3)]:
            child.expect("done")
            child.finish()


def test_a_killed_writer_leaves_the_old_value_or_the_new(place: Path, children: Callable[..., Child]) -> None:
    code = """
        fabric = fabrex.Fabric.open("lab")
        say(1)
        i = 0
        while True:
            i += 1
            fabric.put("shared", bytes([i % 256]) * (i * 977 % 50000 + 1))
            fabric.put(f"name{i % 50}", b"x" * (i % 3000))
        """
    with persistent(topology()) as fabric:
        for _ in range(6):
            child = children(code)
            child.expect(1)
            threading.Event().wait(0.03)
            child.kill()
            value = fabric.get("shared")
            assert len(set(value)) == 1
            fabric.put("shared", b"mine")
            assert fabric.get("shared") == b"mine"


# ---- barriers -----------------------------------------------------------------------------------------------------------


def test_nobody_leaves_a_barrier_early(place: Path) -> None:
    hosts, rounds = 4, 25
    with fabrex.Fabric.create(topology(hosts), "lab", timing=False) as fabric:
        arrived = [0] * hosts
        wrong: list[str] = []

        def party(number: int) -> None:
            with fabric.attach(f"host{number}") as node:
                for turn in range(rounds):
                    arrived[number] += 1
                    node.barrier(timeout=20)
                    if min(arrived) < turn + 1:
                        wrong.append(f"host{number} left round {turn} with {arrived}")
                    node.barrier("second", timeout=20)

        threads = [threading.Thread(target=party, args=(i,)) for i in range(hosts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong and arrived == [rounds] * hosts


def test_a_barrier_of_one_and_of_impossible_sizes(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric, fabric.attach("host0") as node:
        node.barrier("one", size=1)
        node.barrier("one", size=1)
        for size in (0, 5000):
            with pytest.raises(fabrex.InvalidArgument):
                node.barrier("none", size=size)
        with pytest.raises(OverflowError):
            node.barrier("none", size=-1)


def test_a_barrier_that_nobody_else_comes_to_times_out(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric, fabric.attach("host0") as node, pytest.raises(fabrex.WaitTimeout):
        node.barrier("b", timeout=0.03)


def test_a_barrier_can_be_tried_again_after_a_timeout(place: Path) -> None:
    with fabrex.Fabric.create(topology(), "lab") as fabric, fabric.attach("host0") as h0, fabric.attach("host1") as h1:
        with pytest.raises(fabrex.WaitTimeout):
            h0.barrier("b", timeout=0.03)
        with pytest.raises(fabrex.WaitTimeout):
            h1.barrier("b", timeout=0.03)  # host0 has left: this round is not complete
        other = threading.Thread(target=lambda: h1.barrier("b", timeout=10))
        other.start()
        h0.barrier("b", timeout=10)
        other.join(10)
        assert not other.is_alive()


def test_a_barrier_with_two_sizes_is_refused(place: Path) -> None:
    with fabrex.Fabric.create(topology(3), "lab") as fabric, fabric.attach("host0") as h0, fabric.attach("host1") as h1:

        def wait_for_three() -> None:
            while True:
                try:
                    h0.barrier("b", timeout=1.0, size=3)
                except fabrex.InvalidArgument:
                    continue  # host1 was there first, with its own size
                except fabrex.WaitTimeout:
                    return

        waiting = threading.Thread(target=wait_for_three)
        waiting.start()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                h1.barrier("b", timeout=0.01, size=2)
            except fabrex.InvalidArgument:
                break
            except fabrex.WaitTimeout:
                continue  # host0 is not there yet
        else:
            pytest.fail("two sizes at one barrier were accepted")
        waiting.join()
        with pytest.raises(fabrex.WaitTimeout):
            h1.barrier("b", timeout=0.01, size=2)  # a fresh round may have another size
