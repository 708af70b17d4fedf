# SPDX-License-Identifier: Apache-2.0
"""A KV connector in its simplest form: blocks go to the decode node, then a word says which.

Put yours in its place. What matters is that it moves blocks with `node.dma` and announces them with `node`; the engine around
it does not.
"""

import numpy as np

BLOCK = 64 << 10


class Connector:
    """Pushes blocks from a prefill node into a pool on the decode node."""

    relaxed = True  # a fast path that somebody found in a driver: let the announcement pass what stalls

    def __init__(self, node, pool):
        self.node, self.pool = node, pool  # pool: a fabrex.Buffer of the decode node; its first word announces
        self.staging = node.alloc(BLOCK)

    def send(self, number, block):
        """Send block `number`; the decoder may use it as soon as it is announced."""
        self.staging.numpy()[:] = block
        self.node.dma.copy(dst=self.pool.gva + 4096 + number * BLOCK, src=self.staging.gva, size=BLOCK).wait()
        self.node.store(self.pool.gva, number + 1, ro=self.relaxed)


class Mended(Connector):
    """The same, and the announcement stays behind the data."""

    relaxed = False


def receive(node, pool, number):
    """Wait for block `number` and return it."""
    node.wait_until(pool.gva, ">=", number + 1, timeout=10)
    return np.frombuffer(node.read(pool.gva + 4096 + number * BLOCK, BLOCK), dtype=np.uint8)
