# SPDX-License-Identifier: Apache-2.0
"""Programs that the tests of the virtual clock share. As a script it prints trace hashes: for other processes to compare."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import fabrex
import fabrex.sim


def producer(node: Any) -> None:
    """Data, then a flag that may pass it."""
    gva = node.fabric.gva
    node.store(gva("host1", 0), 42)
    node.store(gva("host1", 64), 1, ro=True)


def mended(node: Any) -> None:
    """The same with the flush that was missing."""
    gva = node.fabric.gva
    node.store(gva("host1", 0), 42)
    node.flush("host1")
    node.store(gva("host1", 64), 1, ro=True)


def consumer(node: Any) -> int:
    """What the data are once the flag is there."""
    gva = node.fabric.gva
    node.wait_until(gva("host1", 64), "==", 1)
    value: int = node.load(gva("host1", 0))
    return value


def consumer_at_once(node: Any) -> int:
    """Whatever the data are."""
    value: int = node.load(node.fabric.gva("host1", 0))
    return value


def careful(node: Any) -> None:
    """The same, as a claim."""
    assert consumer(node) == 42, "the data are not there"


def busy0(node: Any) -> Any:
    """A little of everything: names, barriers, DMA, atomics, bulk, doorbells, chance."""
    node.barrier("start")
    buffer = node.alloc(32 << 10, name="source")
    with buffer.access() as memory:
        memory[:] = bytes(range(256)) * 128
    target = node.fabric.buffer("target", timeout=None)
    node.dma.copy(target.gva, buffer.gva, 16 << 10).wait()
    node.dma.put_signal(target.gva + (16 << 10), buffer.gva, 8 << 10, target.gva + (24 << 10), 7).wait()
    for _ in range(node.random.randrange(3, 9)):
        node.fetch_add(target.gva + (25 << 10), 3)
        node.sleep(node.random.random() * 1e-6)
    node.write(target.gva + (26 << 10), b"bulk" * 300)
    node.flush("host1")
    node.ntb.peer_spad_write("host1", 1, 99)
    node.ntb.peer_db_set("host1", 1 << 2)
    node.barrier("end")
    return node.ntb.peer_spad_read("host1", 1), node.read(target.gva, 64)


def busy1(node: Any) -> Any:
    """The other side of it."""
    node.barrier("start")
    target = node.alloc(32 << 10, name="target")
    node.wait_until(target.gva + (24 << 10), "==", 7)
    while not (node.ntb.db_read() & 4):
        node.ntb.wait_event(timeout=1)
    node.fabric.put("done", b"yes")
    node.barrier("end")
    with target.access() as memory:
        return node.load(target.gva + (25 << 10)), bytes(memory[26 << 10 : (26 << 10) + 8])


async def waits(node: Any) -> Any:
    """An async program: timers, tasks and operations at once."""
    gva = node.fabric.gva("host1", 4096)
    buffer = node.alloc(4096)
    done = node.dma.copy(gva, buffer.gva, 4096)
    ticks = []

    async def tick() -> None:
        for _ in range(3):
            await asyncio.sleep(1e-6)
            ticks.append(node.now_ps)

    task = asyncio.create_task(tick())
    loads = await asyncio.gather(node.begin("load", gva), node.begin("load", gva + 8), done)
    await task
    return loads, len(ticks)


PAIRS: dict[str, dict[str, Any]] = {
    "message": {"host0": producer, "host1": consumer},
    "busy": {"host0": busy0, "host1": busy1},
    "async": {"host0": waits},
}


def hashes(seeds: int) -> dict[str, list[str]]:
    """Trace hashes of all programs, under every ordering."""
    return {
        f"{name} {ordering}": [
            fabrex.sim.run("fabrex-pair", pair, ordering=ordering, seed=seed).trace_hash for seed in range(seeds)
        ]
        for name, pair in PAIRS.items()
        for ordering in ("posted", "immediate", "adversarial")
    }


if __name__ == "__main__":
    print(json.dumps(hashes(int(sys.argv[1]))))
