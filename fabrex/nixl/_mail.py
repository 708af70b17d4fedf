# SPDX-License-Identifier: Apache-2.0
"""Notifications: messages from agent to agent, over the fabric itself.

Each agent has a box of lanes in its own registered memory, so that it goes with its process. A sender claims one lane of the
receiver's box by an atomic, and is then the only one who writes there: frames into the ring, then `head` behind them. Both
are posted writes of one path and class, so whoever sees the head sees the frames, and whoever gets a notification sees the
data that was written before it. The receiver alone writes `tail`. A full ring keeps messages at the sender.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from typing import Any

import numpy as np

from ..errors import FabricError
from ..node import Node
from ._bindings import nixlBackendError, nixlRemoteDisconnectError

LANES = 64
RING = 32 << 10
PART = 8 << 10  # of a message in one frame
STATE, HEAD, TAIL, NAME, DATA = 0, 64, 128, 192, 512
LANE = DATA + RING
FREE, CLAIMED, READY, LEAVING = range(4)
_FRAME = struct.Struct("<II")  # bytes, and whether more follow
_SKIP = 0xFFFFFFFF
NAME_LIMIT = DATA - NAME - 4


class Box:
    """What an agent receives into."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._memory = np.zeros(LANES * LANE, dtype=np.uint8)
        self._words = self._memory.view(np.uint64).reshape(LANES, LANE // 8)
        self._region = node.register(self._memory)
        self._parts: list[list[bytes]] = [[] for _ in range(LANES)]
        self.gva = self._region.gva

    def collect(self, into: dict[str, list[bytes]]) -> None:
        """Add what has come to `into`, by sender."""
        self._node.progress()
        heads, tails = self._words[:, HEAD // 8].copy(), self._words[:, TAIL // 8]
        for lane in np.flatnonzero((heads != tails) | (self._words[:, STATE // 8] == LEAVING)).tolist():
            self._take(lane, int(heads[lane]), into)

    def _take(self, lane: int, head: int, into: dict[str, list[bytes]]) -> None:
        memory = self._memory[lane * LANE : (lane + 1) * LANE]
        tail = int(self._words[lane, TAIL // 8])
        named = int(memory[NAME : NAME + 4].view("<u4")[0])
        sender = bytes(memory[NAME + 4 : NAME + 4 + min(named, NAME_LIMIT)]).decode(errors="replace")
        if head < tail or head - tail > RING:
            tail = head  # garbage: nothing that a peer writes may do harm
        while tail < head:
            at = tail % RING
            size, more = _FRAME.unpack(bytes(memory[DATA + at : DATA + at + 8]))
            if size == _SKIP:
                tail += RING - at
                continue
            if size > PART or at + 8 + size > RING:
                tail = head
                break
            self._parts[lane].append(bytes(memory[DATA + at + 8 : DATA + at + 8 + size]))
            if not more:
                into.setdefault(sender, []).append(b"".join(self._parts[lane]))
                self._parts[lane].clear()
            tail += _padded(size)
        if int(self._words[lane, STATE // 8]) == LEAVING and tail == int(self._words[lane, HEAD // 8]):
            self._parts[lane].clear()
            self._words[lane, HEAD // 8] = self._words[lane, TAIL // 8] = 0
            self._words[lane, STATE // 8] = FREE
        else:
            self._words[lane, TAIL // 8] = tail

    def close(self) -> None:
        """Take the memory back."""
        self._region.close()


def _padded(size: int) -> int:
    return (8 + size + 7) & ~7


class Lane:
    """One sender's way into another agent's box."""

    def __init__(self, node: Node, sender: str, box: int) -> None:
        self._node = node
        self._waiting: deque[bytes] = deque()
        self._head = self._tail = 0
        self._gva = 0
        self._sender = sender.encode()
        self._box = box

    def connect(self) -> None:
        """Claim a lane: some round trips, once."""
        if self._gva:
            return
        try:
            for lane in range(LANES):
                gva = self._box + lane * LANE
                if self._node.compare_swap(gva + STATE, FREE, CLAIMED) == FREE:
                    self._node.write(gva + NAME, struct.pack("<I", len(self._sender)) + self._sender)
                    self._node.store(gva + STATE, READY)
                    self._head = self._tail = 0
                    self._gva = gva
                    return
        except FabricError as error:
            raise nixlRemoteDisconnectError(str(error)) from error
        raise nixlBackendError(f"{LANES} agents are connected to that agent already")

    @property
    def waits(self) -> bool:
        """Whether something could not be sent yet."""
        return bool(self._waiting)

    def send(self, message: bytes) -> None:
        """Send, or keep until the ring has room; see `pump`."""
        self.connect()
        pieces = [message[i : i + PART] for i in range(0, len(message), PART)] or [b""]
        for i, piece in enumerate(pieces):
            frame = _FRAME.pack(len(piece), int(i + 1 < len(pieces))) + piece
            self._waiting.append(frame + bytes(_padded(len(piece)) - len(frame)))
        self.pump()

    def pump(self) -> None:
        """Send what there is room for."""
        try:
            while self._waiting:
                frame = self._waiting[0]
                at = self._head % RING
                skip = RING - at if at + len(frame) > RING else 0
                if self._head + skip + len(frame) - self._tail > RING:
                    self._tail = self._node.load(self._gva + TAIL)
                    if self._head + skip + len(frame) - self._tail > RING:
                        return
                if skip:
                    self._node.write(self._gva + DATA + at, _FRAME.pack(_SKIP, 0))
                    self._head += skip
                    at = 0
                self._node.write(self._gva + DATA + at, frame)
                self._head += len(frame)
                self._node.store(self._gva + HEAD, self._head)
                self._waiting.popleft()
        except FabricError as error:
            self._waiting.clear()
            raise nixlRemoteDisconnectError(str(error)) from error

    def close(self) -> None:
        """Give the lane back, behind the last message."""
        if self._gva and not self._node.closed:
            with contextlib.suppress(FabricError):
                self._node.store(self._gva + STATE, LEAVING)
        self._gva = 0


def messages(notified: Any) -> bytes:
    """Return a notification as bytes; text is taken as well."""
    if isinstance(notified, str):
        return notified.encode()
    if isinstance(notified, (bytes, bytearray, memoryview)):
        return bytes(notified)
    raise TypeError(f"a notification is bytes, not {type(notified).__name__}")
