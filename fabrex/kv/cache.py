# SPDX-License-Identifier: Apache-2.0
"""A cache for transformers whose keys and values are fabric memory.

The tensors are views of an exported buffer, so nothing is copied between the model and the fabric: what the model writes is
what a peer's DMA reads, and the other way round. Raw access is functional and untimed; the hand-over is not. It is ordered by
the fabric alone: `put_signal` when pushed, a doorbell word and then a DMA read when pulled. It is declared as well: the buffer is
released before it leaves and acquired when it has come. A cache has room for one announcement: announce the next when the peer
says that it has taken the last.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from ..dma import Completion
from ..errors import InvalidArgument, WaitTimeout
from ..node import Node
from .layout import FLAG, HEADER, KVAddress, KVLayout

_TOKENS = 0xFFFFFFFF


class FabricLayer(CacheLayerMixin):
    """One layer: two views of the buffer, and how many tokens of them are in use."""

    is_compileable = False
    is_sliding = False
    is_croppable = True

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self._keys, self._values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self.length = 0
        self._show()

    def _show(self) -> None:
        self.keys, self.values = self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the memory is there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new tokens into fabric memory and return views of all of them."""
        batch, heads, new, size = key_states.shape
        _, own_heads, room, own_size = self._keys.shape
        if batch != 1:
            raise InvalidArgument(f"a batch of {batch}: a FabricCache holds one sequence; make one for each")
        if (heads, size) != (own_heads, own_size) or value_states.shape != key_states.shape:
            raise InvalidArgument(f"{heads} heads of {size} for a cache of {own_heads} heads of {own_size}")
        if key_states.dtype != self.dtype:
            raise InvalidArgument(f"{key_states.dtype} for a cache of {self.dtype}; give the model's dtype to FabricCache")
        if self.length + new > room:
            raise InvalidArgument(f"{self.length} + {new} tokens do not fit a cache of {room}; make it with more max_tokens")
        self._keys[:, :, self.length : self.length + new] = key_states
        self._values[:, :, self.length : self.length + new] = value_states
        self.length += new
        self._show()
        return self.keys, self.values

    def truncate(self, length: int) -> None:
        """Set the number of tokens in use."""
        self.length = length
        self._show()

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens off the end: -n removes n of them, n keeps n."""
        self.truncate(max(self.length + tokens_to_remove, 0) if tokens_to_remove <= 0 else min(tokens_to_remove, self.length))

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Return how long the attention mask is, and where it begins."""
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.length + new, 0

    def get_seq_length(self) -> int:
        """Return the tokens in use."""
        return self.length

    def get_max_length(self) -> int:
        """Return the tokens that it can hold."""
        return int(self._keys.shape[2])

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        """Begin anew."""
        self.truncate(0)

    def offload(self) -> None:
        """Nothing: it is in this machine's memory already."""

    prefetch = offload

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Not for one sequence."""
        if beam_idx.numel() != 1 or int(beam_idx[0]) != 0:
            raise InvalidArgument("beam search needs a batch; a FabricCache holds one sequence")


def _shape(config: Any, max_tokens: int, block: int, dtype: torch.dtype) -> KVLayout:
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise InvalidArgument(f"layers of {', '.join(sorted(kinds))}: FabricCache is for full attention only")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = -(-max_tokens // block) * block if isinstance(max_tokens, int) and max_tokens > 0 else max_tokens
    return KVLayout(config.num_hidden_layers, heads, size, tokens, block, str(dtype).removeprefix("torch."))


class FabricCache(Cache):
    """The cache of one sequence, in the fabric.

    Args:
        node: whose memory it is in, and whose DMA engine hands it over.
        config: the model's.
        max_tokens: room; rounded up to whole blocks.
        dtype: the model's.
        block: tokens of a block: a hand-over moves whole blocks.
        on, tier, name: as for `Node.alloc`.
    Raises:
        InvalidArgument: a shape that it cannot hold. OutOfFabricMemory.
    """

    def __init__(
        self,
        node: Node,
        config: Any,
        max_tokens: int,
        *,
        dtype: torch.dtype = torch.float32,
        block: int = 16,
        on: str | None = None,
        tier: str | None = None,
        name: str | None = None,
    ) -> None:
        self.node = node
        self.layout = _shape(config, max_tokens, block, dtype)
        self.buffer = node.alloc(HEADER + self.layout.size, name, on=on, tier=tier, align=4096)
        node.write(self.buffer.gva, bytes(HEADER))
        node.flush(self.buffer.node)
        shape = self.layout
        flat = self.buffer.tensor()[HEADER:].view(dtype)
        self.storage = flat.view(shape.tokens, shape.layers, 2, shape.heads, shape.head_size)
        # (token, head, dimension) as transformers wants it: (batch, head, token, dimension).
        views = [[self.storage[:, i, kv].permute(1, 0, 2).unsqueeze(0) for kv in (0, 1)] for i in range(shape.layers)]
        super().__init__(layers=[FabricLayer(keys, values) for keys, values in views])
        self._ticket = 0
        self._seen = 0
        self.bytes_pulled = 0  # by the last pull

    @property
    def address(self) -> KVAddress:
        """Where it is, for peers."""
        return KVAddress(self.buffer.gva, self.buffer.node, self.layout)

    @property
    def length(self) -> int:
        """Tokens in use."""
        return int(self.layers[0].get_seq_length())

    def truncate(self, tokens: int) -> None:
        """Set the number of tokens in use, in all layers."""
        for layer in self.layers:
            layer.truncate(self.layout.check(tokens))

    def free(self) -> None:
        """Give the memory back."""
        self.buffer.free()

    # -- hand-over ----------------------------------------------------------------------------------------------------

    def _like(self, peer: KVAddress) -> None:
        mine, theirs = self.layout, peer.layout
        if (mine.layers, mine.heads, mine.head_size, mine.block, mine.dtype) != (
            theirs.layers,
            theirs.heads,
            theirs.head_size,
            theirs.block,
            theirs.dtype,
        ):
            raise InvalidArgument(f"the caches differ: {mine} here, {theirs} there")

    def _announced(self, tokens: int) -> int:
        self._ticket = (self._ticket + 1) & _TOKENS
        return self._ticket << 32 | tokens

    def push(self, peer: KVAddress, tokens: int | None = None, **options: Any) -> Completion:
        """Write the first tokens into a peer's cache and announce them behind: one operation.

        Args:
            peer: the other cache's `address`.
            tokens: how many; all in use if left out.
            options: visible, ro, ido, tc and channel, as for `Dma.copy`.
        """
        self._like(peer)
        count = peer.layout.check(self.layout.check(self.length if tokens is None else tokens))
        self.buffer.release()
        size = self.layout.bytes_for(count)
        return self.node.dma.put_signal(
            peer.data, self.buffer.gva + HEADER, size, signal=peer.flag, value=self._announced(count), **options
        )

    def estimate(self, peer: KVAddress, tokens: int, *, pull: bool = False) -> int:
        """Return what the model gives a hand-over on an idle fabric, in ps: until announced, or here."""
        size = self.layout.bytes_for(tokens)
        if not pull:
            moved = self.node.estimate("dma_write", peer.data, size)["arrives_ps"]
            return int(moved)
        told = self.node.estimate("store", peer.flag)["arrives_ps"]  # as long this way as the other
        return int(told + self.node.estimate("dma_read", peer.data, size)["completes_ps"])

    def offer(self, peer: KVAddress, tokens: int | None = None) -> None:
        """Announce tokens that the peer is to `pull`: an 8-byte store."""
        self._like(peer)
        count = peer.layout.check(self.layout.check(self.length if tokens is None else tokens))
        self.buffer.release()
        self.node.store(peer.flag, self._announced(count))

    def wait(self, timeout: float | None = None) -> int:
        """Wait for an announcement; returns its tokens.

        Raises:
            WaitTimeout: none came. InvalidArgument: it says more than fits.
        """
        value = self.node.wait_until(self.buffer.gva + FLAG, "!=", self._seen, timeout)
        self._seen = value
        return self.layout.check(value & _TOKENS)

    def receive(self, timeout: float | None = None) -> int:
        """Wait for a `push`; the cache then has its tokens. Returns how many."""
        tokens = self.wait(timeout)
        self.buffer.acquire()
        self.truncate(tokens)
        return tokens

    def pull(self, peer: KVAddress, timeout: float | None = None, **options: Any) -> int:
        """Wait for an `offer`, and read its tokens from the peer's cache. Returns how many."""
        self._like(peer)
        tokens = peer.layout.check(self.wait(timeout))
        done = self.node.dma.copy(self.buffer.gva + HEADER, peer.data, self.layout.bytes_for(tokens), **options)
        try:
            done.wait(timeout)
        except WaitTimeout:
            done.cancel()
            raise
        self.bytes_pulled = done.bytes_done
        self.buffer.acquire()
        self.truncate(tokens)
        return tokens


__all__ = ["FabricCache", "FabricLayer"]
