# SPDX-License-Identifier: Apache-2.0
"""MPI one-sided operations between two ranks through mpi4py; started by the driver under mpirun."""

from __future__ import annotations

import sys
import time

from mpi4py import MPI


def main() -> None:
    """Print `operation bytes nanoseconds` lines, as the C programs do."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    world = MPI.COMM_WORLD
    window = MPI.Win.Allocate(64, 1, comm=world)
    word, one, old = bytearray(8), (1).to_bytes(8, "little"), bytearray(8)
    if world.rank == 0:
        window.Lock(1, MPI.LOCK_SHARED)
        calls = {
            "mpi_get": lambda: (window.Get(word, 1), window.Flush(1)),
            "mpi_put": lambda: (window.Put(word, 1), window.Flush(1)),
            "mpi_fetch_add": lambda: (window.Fetch_and_op([one, MPI.INT64_T], [old, MPI.INT64_T], 1), window.Flush(1)),
        }
        for _ in range(rounds):
            for name, call in calls.items():
                for _ in range(200):
                    call()
                begin = time.perf_counter_ns()
                for _ in range(5000):
                    call()
                print(name, 8, (time.perf_counter_ns() - begin) / 5000, flush=True)
        window.Unlock(1)
        world.send(None, 1)
    else:
        while not world.iprobe(0):
            time.sleep(0.001)
        world.recv(source=0)
    window.Free()


if __name__ == "__main__":
    main()
