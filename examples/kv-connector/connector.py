# SPDX-License-Identifier: Apache-2.0
"""A KV connector in its simplest form: blocks go to the decode node, then a word says which.

Put yours in its place. What matters is that it moves blocks with `node.dma` and announces them with `node`; the engine around
it does not.
"""

BLOCK = 4 << 10


class Connector:
    """Pushes blocks from a prefill node into a pool on the decode node."""

    priority = 1  # a fast path: announcements in a traffic class of their own, so that they do not queue behind bulk

    def __init__(self, node, pool):
        self.node, self.pool = node, pool  # pool: a fabrex.Buffer of the decode node; its first word announces
        self.staging = node.alloc(BLOCK)

    def send(self, number, block):
        """Send block `number`; the decoder may use it as soon as it is announced."""
        with self.staging.access() as memory:  # raw bytes: declared, so that the DMA engine sees them
            memory[:] = block
        self.node.dma.copy(dst=self.pool.gva + 4096 + number * BLOCK, src=self.staging.gva, size=BLOCK).wait()
        self.node.store(self.pool.gva, number + 1, tc=self.priority)


class Mended(Connector):
    """The same, and the announcement stays behind the data."""

    priority = 0


def receive(node, pool, number):
    """Wait for block `number` and return it."""
    node.wait_until(pool.gva, ">=", number + 1, timeout=1)
    return node.read(pool.gva + 4096 + number * BLOCK, BLOCK)
