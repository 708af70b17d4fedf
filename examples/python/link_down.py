# SPDX-License-Identifier: Apache-2.0
"""A link goes down while host1 writes a log into host0's memory: lost writes are noticed and written again.

Posted writes never raise for faults of the fabric. The writer keeps what it has not confirmed, confirms with a checked flush
every few records, and repeats the unconfirmed ones after a failure.

    python examples/python/link_down.py
"""

from __future__ import annotations

import fabrex

RECORDS, BATCH = 40, 4


def main() -> None:
    with fabrex.Fabric.create("fabrex-pair") as fabric:
        host0, host1 = fabric.attach("host0"), fabric.attach("host1")
        log = host0.alloc(RECORDS * 8, name="log")
        link = fabric.links["host1:ntb0-sw0:p1"]
        failures = 0
        for start in range(0, RECORDS, BATCH):
            if start == RECORDS // 2:
                link.down()
            while True:
                for i in range(start, start + BATCH):
                    host1.store(log.gva + 8 * i, i + 1)
                try:
                    host1.flush("host0", check=True)
                    break
                except fabrex.LinkDown as error:
                    failures += 1
                    print(f"records {start} to {start + BATCH - 1}: {error}")
                    link.up()
        stored = [host0.load(log.gva + 8 * i) for i in range(RECORDS)]
        assert stored == list(range(1, RECORDS + 1))
        dropped = fabric.node_info("host0")["posted_dropped"]
        assert failures and dropped >= BATCH
        print(f"all {RECORDS} records are there; {dropped} writes were lost on the way and repeated")


if __name__ == "__main__":
    main()
