# SPDX-License-Identifier: Apache-2.0
"""How a KV cache lies in memory, and what a peer has to know to reach it. No torch here: arithmetic only."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack

from ..errors import InvalidArgument

HEADER = 4096  # words for the hand-over stand before the data
FLAG = 0
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclasses.dataclass(frozen=True)
class KVLayout:
    """Shape of one sequence's cache: [token][layer][key, value][head][dimension].

    Tokens are outermost, so that the first n of them are one range of bytes, and one DMA operation hands them over.

    Attributes:
        block: tokens of a block; a hand-over moves whole blocks.
    """

    layers: int
    heads: int
    head_size: int
    tokens: int
    block: int = 16
    dtype: str = "float32"

    def __post_init__(self) -> None:
        numbers = (self.layers, self.heads, self.head_size, self.tokens, self.block)
        if not all(isinstance(n, int) and n > 0 for n in numbers):
            raise InvalidArgument(f"layers, heads, head size, tokens and block are whole numbers above 0, not {numbers}")
        if self.dtype not in ITEM_BYTES:
            raise InvalidArgument(f"{self.dtype!r} is no type of a cache; there are {', '.join(ITEM_BYTES)}")
        if self.tokens % self.block:
            raise InvalidArgument(f"{self.tokens} tokens are no whole number of blocks of {self.block}")

    @property
    def token_bytes(self) -> int:
        """Bytes of one token: layers x 2 x heads x head size x element size."""
        return self.layers * 2 * self.heads * self.head_size * ITEM_BYTES[self.dtype]

    @property
    def size(self) -> int:
        """Bytes of the whole cache."""
        return self.tokens * self.token_bytes

    def blocks(self, tokens: int) -> int:
        """Return how many blocks hold so many tokens."""
        return -(-tokens // self.block)

    def bytes_for(self, tokens: int) -> int:
        """Return what a hand-over of so many tokens moves: blocks x tokens of a block x bytes of a token."""
        return self.blocks(tokens) * self.block * self.token_bytes

    def check(self, tokens: Any) -> int:
        """Return a number of tokens that fits; raises InvalidArgument."""
        if not isinstance(tokens, int) or not 0 <= tokens <= self.tokens:
            raise InvalidArgument(f"{tokens!r} tokens do not fit a cache of {self.tokens}")
        return tokens


@dataclasses.dataclass(frozen=True)
class KVAddress:
    """Where a cache is, for its peers: `pack()` it, send it, `unpack()` it there."""

    gva: int
    node: str
    layout: KVLayout

    @property
    def flag(self) -> int:
        """Address of the word that announces a hand-over."""
        return self.gva + FLAG

    @property
    def data(self) -> int:
        """Address of the first token."""
        return self.gva + HEADER

    def pack(self) -> bytes:
        """Return it as bytes."""
        packed: bytes = msgpack.packb([self.gva, self.node, dataclasses.astuple(self.layout)])
        return packed

    @classmethod
    def unpack(cls, data: bytes) -> KVAddress:
        """Read it; raises InvalidArgument for anything else."""
        try:
            gva, node, shape = msgpack.unpackb(data)
            if not isinstance(gva, int) or not 0 <= gva < 1 << 64 or not isinstance(node, str):
                raise ValueError("no address")
            return cls(gva, node, KVLayout(*shape))
        except InvalidArgument:
            raise
        except Exception as error:
            raise InvalidArgument(f"this is no address of a cache: {error}") from None
