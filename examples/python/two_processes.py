# SPDX-License-Identifier: Apache-2.0
"""Two processes on one fabric: host1 sends messages into a ring in host0's memory, host0 receives them.

A ring needs no flush: posted writes from one node to another keep their order, so a message is there before the index that
announces it. The receiver's own index goes back the same way, and keeps the sender from overrunning it.

    python examples/python/two_processes.py
"""

from __future__ import annotations

import multiprocessing

import fabrex

SLOTS, SLOT_BYTES, MESSAGES = 8, 64, 100
HEAD, DATA = 0, 64  # in host0's buffer: the index that the sender publishes, then the slots


def receive(fabric: fabrex.Fabric, results: multiprocessing.Queue[list[str]]) -> None:
    with fabric, fabric.attach("host0", role="owner") as host0:
        ring = host0.alloc(DATA + SLOTS * SLOT_BYTES, name="ring")
        credit = fabric.buffer("credit", timeout=30)
        got: list[str] = []
        for i in range(MESSAGES):
            host0.wait_until(ring.gva + HEAD, ">", i, timeout=30)
            slot = host0.read(ring.gva + DATA + i % SLOTS * SLOT_BYTES, SLOT_BYTES)
            got.append(slot.rstrip(b"\0").decode())
            host0.store(credit.gva, i + 1)
        host0.flush("host1")
        results.put(got)


def send(fabric: fabrex.Fabric) -> None:
    with fabric, fabric.attach("host1", role="owner") as host1:
        credit = host1.alloc(64, name="credit")
        ring = fabric.buffer("ring", timeout=30)
        for i in range(MESSAGES):
            if i >= SLOTS:
                host1.wait_until(credit.gva, ">", i - SLOTS, timeout=30)
            message = f"message {i}".encode().ljust(SLOT_BYTES, b"\0")
            host1.write(ring.gva + DATA + i % SLOTS * SLOT_BYTES, message)
            host1.store(ring.gva + HEAD, i + 1)
        host1.flush("host0")


def main() -> None:
    spawn = multiprocessing.get_context("spawn")  # a handle does not survive fork; a fabric pickles to a reopen
    results = spawn.Queue()
    with fabrex.Fabric.create("fabrex-pair") as fabric:
        processes = [spawn.Process(target=receive, args=(fabric, results)), spawn.Process(target=send, args=(fabric,))]
        for process in processes:
            process.start()
        got = results.get(timeout=60)
        for process in processes:
            process.join(60)
    assert got == [f"message {i}" for i in range(MESSAGES)]
    print(f"host0 received {len(got)} messages in order; the last is {got[-1]!r}")


if __name__ == "__main__":
    main()
