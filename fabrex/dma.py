# SPDX-License-Identifier: Apache-2.0
"""A node's DMA engine: copies between any two addresses, while the program goes on."""

from __future__ import annotations

import operator
import os
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

from ._handle import SLICE_NS, check, ffi, lib
from .errors import InvalidArgument, WaitTimeout

if TYPE_CHECKING:
    from .node import Node

AGAIN: int = lib.FBX_E_AGAIN
_VISIBLE, _RO, _IDO = lib.FBX_DMA_VISIBLE, lib.FBX_DMA_RO, lib.FBX_DMA_IDO
_KINDS = {9: "dma_read", 10: "dma_write"}


def _address(gva: Any) -> int:
    address = operator.index(gva)
    if not 0 <= address < 1 << 64:
        raise OverflowError(f"{address} is no 64-bit address")
    return address


def _count(size: Any, what: str = "bytes") -> int:
    count = operator.index(size)
    if not 0 <= count < 1 << 64:
        raise InvalidArgument(f"{count} {what}: a count is not negative and has 64 bits")
    return count


class Completion:
    """One DMA operation under way: wait for it, poll it, await it, select on it, or cancel it.

    Complete means: the source may be used again and the last write has been issued. It is visible at its arrival, or at once
    if the operation was submitted with ``visible=True``. Dropping a Completion does not end the operation.

    Attributes:
        size: bytes in all.
    """

    __slots__ = ("__weakref__", "_id", "_node", "_record", "size")

    def __init__(self, node: Node, number: int, size: int) -> None:
        self.size = size
        self._node = node
        self._id = number
        self._record: Any = None

    def __repr__(self) -> str:
        state = self._status().status
        name = "under way" if state == AGAIN else "complete" if state == 0 else "failed"
        return f"<Completion of {self._record.done} of {self.size} bytes ({name})>"

    def __del__(self) -> None:
        if self._id:
            self._node._dma_release(self._id)

    def _status(self) -> Any:
        # Also of a closed handle: what was under way then says so.
        if self._node._handle.pid != os.getpid():
            self._node._pointer()
        if self._record is None:
            self._record = ffi.new("struct fbx_dma_status *")
        check(lib.fbx_dma_poll(self._node._handle.pointer, self._id, self._record), self._node)
        return self._record

    def done(self) -> bool:
        """Return whether it is complete, or has failed; never waits."""
        return bool(self._status().status != AGAIN)

    @property
    def bytes_done(self) -> int:
        """Bytes that have arrived, in the order of the operation; on success all of them."""
        return int(self._status().done)

    @property
    def kind(self) -> str:
        """`dma_read` if a source is remote, `dma_write` otherwise, as `fidelity()` counts it; known once it runs."""
        return _KINDS[int(self._status().kind)]

    @property
    def issued_ps(self) -> int:
        """Fabric time at which it was submitted, in ps."""
        return int(self._status().issued_ps)

    @property
    def completes_ps(self) -> int:
        """Fabric time at which it is complete, in ps: exact once it is, as far as it is planned before."""
        return int(self._status().completes_ps)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for completion; returns the bytes moved.

        Args:
            timeout: seconds of fabric time; None waits as long as it takes.
        Raises:
            WaitTimeout: it is still under way; it goes on.
            What the operation itself failed with: AddressError, NoWindow, CompleterAbort, LinkDown, PeerLost, InvalidArgument
            (source and destination overlap), Cancelled, ClosedHandle…
        See: fbx_dma_wait().
        """
        handle, fabric = self._node._handle, self._node.fabric
        if handle.pid != os.getpid():
            self._node._pointer()
        deadline = None
        if timeout is not None:
            from .node import seconds_to_ps

            deadline = fabric.now_ps + seconds_to_ps(timeout)
        while True:
            scheduler = self._node._scheduler
            if scheduler is not None and not self.done() and not self._node.closed:
                never = (1 << 64) - 1
                scheduler.watch(self._node._address, 4, self._id, never if deadline is None else min(deadline, never))
            limit = SLICE_NS
            if deadline is not None and not fabric.closed:
                limit = min(limit, max(deadline - fabric.now_ps, 0) // 1000)
            status = lib.fbx_dma_wait(handle.pointer, self._id, limit)
            if status != AGAIN:
                if status:
                    check(status, self._node)
                return self.size
            if deadline is not None and fabric.now_ps >= deadline:
                raise WaitTimeout(f"the DMA of {self.size} bytes takes longer than {timeout} s", node=self._node.name)

    def cancel(self) -> bool:
        """End it; returns False if it was complete already.

        What has arrived stays (`bytes_done`); nothing of it lands after the return. `wait()` raises Cancelled.
        See: fbx_dma_cancel().
        """
        if self._node.closed:
            return False
        return bool(check(lib.fbx_dma_cancel(self._node._pointer(), self._id), self._node))

    def fileno(self) -> int:
        """Return a descriptor of this process that becomes readable at completion; it closes with this object."""
        if self._node._handle.pid != os.getpid():
            self._node._pointer()
        return check(lib.fbx_dma_fd(self._node._handle.pointer, self._id), self._node)

    def __await__(self) -> Generator[Any, None, int]:
        import asyncio

        if not self.done():
            loop = asyncio.get_running_loop()
            # A descriptor of its own for each that awaits: a loop keeps one reader for each.
            descriptor = os.dup(self.fileno())
            arrived = loop.create_future()
            loop.add_reader(descriptor, lambda: None if arrived.done() else arrived.set_result(None))
            try:
                yield from arrived.__await__()
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        return self.wait()


class Dma:
    """A node's DMA engine: `node.dma`.

    An operation is queued in a channel and executed in the order of that channel, by a thread of this process or by whoever
    waits for it. Addresses may be local or remote, also both remote. What goes wrong is raised by `Completion.wait()`; only a
    full channel and arguments that no operation has raise at once.

    Attributes:
        channels: channels of this node: operations that run at the same time.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._copy = node._dma_copy
        self.channels: int = min(node.fabric.topology.nodes[node.name].dma.channels, int(lib.FBX_DMA_CHANNEL_LIMIT))

    def __repr__(self) -> str:
        return f"<DMA engine of {self._node.name}, {self.channels} channel{'s' * (self.channels != 1)}>"

    def _submit(
        self,
        d: Any,
        size: int,
        *,
        visible: bool = False,
        ro: bool = False,
        ido: bool = False,
        tc: int = 0,
        path: int = 0,
        channel: int = 0,
    ) -> Completion:
        if not 0 <= operator.index(channel) < self.channels:
            raise InvalidArgument(
                f"channel {channel}: {self._node.name} has {self.channels}",
                hint="set dma: {channels: N} on the node in the topology",
            )
        if not 0 <= operator.index(tc) <= 7:
            raise InvalidArgument(f"traffic class {tc}: they are 0 to 7")
        if not 0 <= operator.index(path) <= 3:
            raise InvalidArgument(f"path {path}: they are 0 to 3")
        d.channel, d.tc, d.path = channel, tc, path
        if visible or ro or ido:
            d.flags |= (_VISIBLE if visible else 0) | (_RO if ro else 0) | (_IDO if ido else 0)
        number = ffi.new("uint64_t *")
        if self._node._scheduler is not None:
            self._node._scheduler.site()
        check(lib.fbx_dma_submit(self._node._pointer(), d, number), self._node)
        completion = Completion(self._node, int(number[0]), size)
        self._node._point()
        return completion

    def copy(
        self,
        dst: int,
        src: int,
        size: int,
        *,
        visible: bool = False,
        ro: bool = False,
        ido: bool = False,
        tc: int = 0,
        path: int = 0,
        channel: int = 0,
    ) -> Completion:
        """Copy `size` bytes from `src` to `dst`, both global addresses.

        Args:
            dst, src: any two addresses: local, remote, or both remote. They must not overlap.
            visible: complete only when all of it is visible at the destination (adds a flush).
            ro, ido: relaxed and ID-based ordering of its writes.
            tc: traffic class, 0 to 7.
            path: which of the ways that share no link; 0 is the shortest.
            channel: operations of one channel follow one another.
        Returns:
            A Completion.
        Raises:
            QueueFull: the channel holds as many operations as it takes.
        Timing:
            push: set-up, then the bytes in packets of MPS at the rate of the narrowest link. Pull: set-up, then requests of
            MRRS of which `tags` are outstanding: at most tags * MRRS in each round trip. See `Node.estimate`.
        See: fbx_dma_submit().
        """
        if self._node._scheduler is None and not (visible or ro or ido or tc or path or channel):
            try:
                number = self._copy(dst, src, size)
            except OverflowError:
                pass  # what is wrong is said below
            else:
                if number is not None:
                    return Completion(self._node, number, size if size.__class__ is int else operator.index(size))
        size = _count(size)
        d = ffi.new("struct fbx_dma *")
        d.dst, d.src, d.bytes = dst, src, size
        return self._submit(d, size, visible=visible, ro=ro, ido=ido, tc=tc, path=path, channel=channel)

    def fill(self, dst: int, value: int, size: int, *, width: int = 1, **options: Any) -> Completion:
        """Fill `size` bytes with `value`, repeated as a little-endian value of `width` bytes (1, 2, 4 or 8).

        Args:
            options: visible, ro, ido, tc, path and channel, as for `copy`.
        """
        value, size = operator.index(value), _count(size)
        if width not in (1, 2, 4, 8):
            raise InvalidArgument(f"a pattern of {width} bytes: 1, 2, 4 or 8")
        if value < 0 or value >> (8 * width):
            raise OverflowError(f"{value} does not fit {width} bytes")
        d = ffi.new("struct fbx_dma *", {"dst": _address(dst), "bytes": size, "fill": value, "fill_bytes": width})
        d.flags = lib.FBX_DMA_FILL
        return self._submit(d, size, **options)

    def copy_2d(self, dst: int, src: int, width: int, height: int, dst_stride: int, src_stride: int, **options: Any) -> Completion:
        """Copy `height` rows of `width` bytes; rows begin `dst_stride` and `src_stride` bytes after one another.

        Args:
            src_stride: 0 copies one row to all.
            options: visible, ro, ido, tc, path and channel, as for `copy`.
        """
        width, height = _count(width), _count(height, "rows")
        d = ffi.new(
            "struct fbx_dma *",
            {
                "dst": _address(dst),
                "src": _address(src),
                "bytes": width if height else 0,
                "rows": height,
                "dst_stride": _count(dst_stride),
                "src_stride": _count(src_stride),
            },
        )
        return self._submit(d, width * height, **options)

    def copy_list(self, pieces: Iterable[tuple[int, int, int]], **options: Any) -> Completion:
        """Copy many pieces, each (dst, src, size), in one operation: gather, scatter, or both.

        Args:
            options: visible, ro, ido, tc, path and channel, as for `copy`.
        """
        rows = [(_address(dst), _address(src), _count(size)) for dst, src, size in pieces]
        table = ffi.new("struct fbx_dma_piece[]", rows)
        d = ffi.new("struct fbx_dma *", {"list": table, "list_count": len(rows)})
        return self._submit(d, sum(size for _, _, size in rows), **options)

    def put_signal(self, dst: int, src: int, size: int, signal: int, value: int, **options: Any) -> Completion:
        """Copy, then store the 8-byte `value` at `signal` behind it on the same path, in one operation.

        Whoever finds the value at `signal` finds the data as well. `signal` is in the same node as `dst`.

        Args:
            options: visible, ro, ido, tc, path and channel, as for `copy`.
        """
        value, size = operator.index(value), _count(size)
        if value < 0 or value >> 64:
            raise OverflowError(f"{value} does not fit 8 bytes")
        d = ffi.new(
            "struct fbx_dma *",
            {"dst": _address(dst), "src": _address(src), "bytes": size, "signal": _address(signal), "signal_value": value},
        )
        d.flags = lib.FBX_DMA_SIGNAL
        return self._submit(d, size, **options)


__all__ = ["Completion", "Dma"]
