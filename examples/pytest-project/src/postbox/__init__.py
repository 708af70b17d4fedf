# SPDX-License-Identifier: Apache-2.0
"""A postbox in fabric memory: one slot, one writer, one reader.

The payload is written first, then the flag behind it: posted writes of one path and class stay in order, so whoever sees the
flag sees the payload.
"""

from __future__ import annotations

from typing import Any

FLAG, LENGTH, PAYLOAD = 0, 8, 64
ROOM = 4096


class Postbox:
    """A postbox at a global address, as one node sees it."""

    def __init__(self, node: Any, gva: int) -> None:
        self.node = node
        self.gva = gva

    def send(self, message: bytes, timeout: float = 5.0) -> None:
        """Put a message in as soon as the slot is empty."""
        if len(message) > ROOM:
            raise ValueError(f"{len(message)} bytes do not fit a postbox of {ROOM}")
        self.node.wait_until(self.gva + FLAG, "==", 0, timeout=timeout)
        self.node.write(self.gva + PAYLOAD, message)
        self.node.store(self.gva + LENGTH, len(message))
        self.node.store(self.gva + FLAG, 1)

    def receive(self, timeout: float = 5.0) -> bytes:
        """Wait for a message and take it out."""
        self.node.wait_until(self.gva + FLAG, "==", 1, timeout=timeout)
        message: bytes = self.node.read(self.gva + PAYLOAD, self.node.load(self.gva + LENGTH))
        self.node.store(self.gva + FLAG, 0)
        return message
