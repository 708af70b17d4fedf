# SPDX-License-Identifier: Apache-2.0
"""MPI one-sided operations between two ranks through mpi4py; started by the driver under mpirun."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from mpi4py import MPI

BULK = (4096, 65536, 1 << 20, 4 << 20, 8 << 20, 16 << 20, 64 << 20)  # measure.h


def timed(call: Callable[[], Any], count: int) -> float:
    """The median of up to 20 slices, as the C programs take it."""
    slices = min(count, 20)
    for _ in range(count // 10 + 1):
        call()
    found = []
    for _ in range(slices):
        begin = time.perf_counter_ns()
        for _ in range(count // slices):
            call()
        found.append((time.perf_counter_ns() - begin) / (count // slices))
    return statistics.median(found)


def main() -> None:
    """Print `operation bytes nanoseconds` lines, as the C programs do."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    world = MPI.COMM_WORLD
    window = MPI.Win.Allocate(BULK[-1], 1, comm=world)
    window.tomemory()[:] = bytes(BULK[-1])
    word, one, old, data = bytearray(8), (1).to_bytes(8, "little"), bytearray(8), memoryview(bytearray(b"x") * BULK[-1])
    world.Barrier()
    if world.rank == 0:
        window.Lock(1, MPI.LOCK_SHARED)
        calls = {
            "mpi_get": lambda: (window.Get(word, 1), window.Flush(1)),
            "mpi_put": lambda: (window.Put(word, 1), window.Flush(1)),
            "mpi_fetch_add": lambda: (window.Fetch_and_op([one, MPI.INT64_T], [old, MPI.INT64_T], 1), window.Flush(1)),
        }
        for _ in range(rounds):
            for name, call in calls.items():
                print(name, 8, timed(call, 5000), flush=True)
            for size in BULK:
                part = data[:size]
                count = 3 if size >= 64 << 20 else 5 if size >= 4 << 20 else min((16 << 20) // size, 2000)
                print("mpi_put", size, timed(lambda part=part: (window.Put(part, 1), window.Flush(1)), count), flush=True)
        window.Unlock(1)
        world.send(None, 1)
    else:
        while not world.iprobe(0):
            time.sleep(0.001)
        world.recv(source=0)
    window.Free()


if __name__ == "__main__":
    main()
