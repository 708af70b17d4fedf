# SPDX-License-Identifier: Apache-2.0
"""The decoder must never use a block before its bytes are there, whatever PCIe may reorder: one test, many seeds.

CONNECTOR=Mended pytest -q examples/kv-connector
"""

import os

import connector
import pytest
from connector import BLOCK, receive

import fabrex.sim

BLOCKS = 3


def prefill(node):
    pool = node.fabric.buffer("pool", timeout=1)
    link = getattr(connector, os.environ.get("CONNECTOR", "Connector"))(node, pool)
    for number in range(BLOCKS):
        link.send(number, bytes([number + 1]) * BLOCK)


def decode(node):
    pool = node.alloc(4096 + BLOCKS * BLOCK, "pool")
    missing = []
    for number in range(BLOCKS):
        block = receive(node, pool, number)
        missing.append(BLOCK - block.count(number + 1))
    return missing


def complete(result):
    return result.returned["host1"] == [0] * BLOCKS  # bytes of each block that were missing


@pytest.mark.parametrize("seed", range(8))
def test_no_block_is_used_before_it_is_there(seed):
    programs = {"host0": prefill, "host1": decode}
    run = fabrex.sim.run("fabrex-pair", programs, ordering="adversarial", seed=seed)
    assert complete(run), f"\n{run.returned['host1']}\n{fabrex.sim.explain('fabrex-pair', programs, seed, check=complete)}"
