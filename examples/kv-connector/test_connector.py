# SPDX-License-Identifier: Apache-2.0
"""The decoder must never see a block before its bytes, whatever PCIe may reorder: one test, many seeds.

    CONNECTOR=Mended pytest -q examples/kv-connector
"""

import os

import numpy as np
import pytest
from connector import BLOCK, receive

import connector

BLOCKS = 3


def prefill(node, kind):
    pool = node.fabric.buffer("pool", timeout=10)
    link = getattr(connector, kind)(node, pool)
    for number in range(BLOCKS):
        link.send(number, number + 1)


def decode(node):
    pool = node.alloc(4096 + BLOCKS * BLOCK, "pool")
    return [int(np.count_nonzero(receive(node, pool, number) != number + 1)) for number in range(BLOCKS)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.fabrex(topology="fabrex-pair", timing="on", ordering="adversarial")
def test_no_block_is_used_before_it_is_there(fabrex_factory, seed):
    fabric = fabrex_factory("fabrex-pair", timing="on", ordering="adversarial", seed=seed)
    kind = os.environ.get("CONNECTOR", "Connector")
    results = fabric.run({"host0": (prefill, kind), "host1": decode}, timeout=60)
    assert results["host1"] == [0] * BLOCKS, f"bytes of each block that were not there yet, seed {seed}"
