# SPDX-License-Identifier: Apache-2.0
"""Buffers: named pieces of the global address space, and views of their bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgpack

from ._handle import NodeHandle, check, ffi, lib, text
from .errors import InvalidArgument

if TYPE_CHECKING:
    import numpy as np

    from .fabric import Fabric
    from .node import Node

HANDLE_VERSION = 1
_WORDS = 4096  # bytes that release() compares at once


class _View:
    """Keeps the mapping of a raw view: the fabric's memory stays mapped until the last view dies."""

    def __init__(self, owner: NodeHandle, gva: int) -> None:
        self.owner: NodeHandle | None = owner
        self.gva = gva

    def __call__(self, _pointer: object) -> None:
        owner, self.owner = self.owner, None
        if owner is not None and lib is not None:
            lib.fbx_unmap(owner.pointer, self.gva)


def map_view(node: Node, gva: int, size: int) -> memoryview:
    """Map `size` bytes from `gva` into this process.

    Functional and untimed: what is read and written here costs no modelled time and obeys no fabric order. The memory is
    committed first, so that no access can fail.

    Raises:
        AddressError: the range leaves its region or window.
        CompleterAbort: the window does not permit reading.
        OutOfFabricMemory: the machine has no room for it.
    See: fbx_map().
    """
    out, writable = ffi.new("void **"), ffi.new("int *")
    check(lib.fbx_map(node._pointer(), gva, size, out, writable), node)
    pointer = ffi.gc(ffi.cast("char *", out[0]), _View(node._handle, gva))
    view = memoryview(ffi.buffer(pointer, size))
    return view if writable[0] else view.toreadonly()


class Buffer:
    """Allocated memory of a node, known by its global address.

    Attributes:
        gva: global address of the first byte.
        size: bytes.
        name: the name under which other processes find it, or "".
        node: name of the node whose memory it is.
    """

    def __init__(self, fabric: Fabric, node: Node | None, record: Any) -> None:
        self.fabric = fabric
        self._node = node
        self._record = ffi.new("struct fbx_buffer *", record)
        self.gva: int = record.gva
        self.size: int = record.bytes
        self.name: str = text(record.name)
        self.node: str = fabric._node_name(record.node)
        self._view: memoryview | None = None
        self._raw: memoryview | None = None  # under the adversary, the bytes of which `_view` is a copy
        self._kept: bytearray | None = None  # what `_view` was when it was acquired

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<Buffer{name} of {self.size} bytes at {self.gva:#x} ({self.node})>"

    def __len__(self) -> int:
        return self.size

    def _viewer(self) -> Node:
        if self._node is not None and not self._node.closed:
            return self._node
        node = self.fabric._any_node()
        if node is None:
            raise InvalidArgument(
                "nobody in this process is a node of the fabric, so there is no window to look through",
                hint="attach a node first, then use node.view(buffer.gva, buffer.size)",
            )
        return node

    @property
    def memory(self) -> memoryview:
        """The bytes, as a memoryview: functional and untimed. Read-only where the window is.

        Under `ordering: adversarial` it is a copy of this process's own, which shows what `acquire` found and of which others
        see what `release` gives back.
        """
        check(lib.fbx_buffer_check(self.fabric._live(), self._record))
        if self._view is None:
            self._view = map_view(self._viewer(), self.gva, self.size)
            if self.fabric.ordering == "adversarial":
                self._raw, self._kept = self._view, bytearray(self.size)
                self._view = memoryview(bytearray(self.size))
                if self._raw.readonly:
                    self._view = self._view.toreadonly()
        return self._view

    def acquire(self) -> memoryview:
        """Declare that this process reads and writes the raw bytes from now on; returns `memory`.

        What has arrived by now is there. Everything that looks at the bytes without operations (`memory`, `numpy`, `tensor`)
        belongs between `acquire` and `release`. Without the adversary a program that forgets them works, most days; with it, it
        sees old bytes and loses its own.
        """
        view, viewer = self.memory, self._viewer()
        viewer.progress()
        if viewer.name != self.node:
            viewer.load(self.gva, size=1)  # a read: what is due over there is delivered first
        if self._raw is not None and self._kept is not None:
            self._kept[:] = self._raw
            (view if not view.readonly else memoryview(view.obj))[:] = self._kept
        return view

    def release(self) -> None:
        """Declare that it no longer does: what it changed is in the fabric's memory when this has returned."""
        view = self.memory
        if self._raw is not None and self._kept is not None and not self._raw.readonly:
            for first in range(0, self.size, _WORDS):
                last = min(first + _WORDS, self.size)
                if view[first:last] == self._kept[first:last]:
                    continue
                for at in range(first, last, 8):  # only what changed: others may write beside it
                    word = slice(at, min(at + 8, last))
                    if view[word] != self._kept[word]:
                        self._raw[word] = view[word]
            self._kept[:] = view
        check(lib.fbx_drain(self._viewer()._pointer()))

    @contextlib.contextmanager
    def access(self) -> Iterator[memoryview]:
        """`acquire` and `release` around a block."""
        view = self.acquire()
        try:
            yield view
        finally:
            self.release()

    def numpy(self, dtype: Any = "u1", shape: int | tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
        """Return a NumPy array over the bytes; no copy.

        Args:
            dtype: anything NumPy takes.
            shape: defaults to one dimension with all that fits.
        Raises:
            InvalidArgument: the shape needs more bytes than the buffer has.
        """
        import numpy as np

        kind = np.dtype(dtype)
        if shape is None:
            shape = (self.size // kind.itemsize,)
        dimensions = (shape,) if isinstance(shape, int) else tuple(shape)
        count = 1
        for length in dimensions:
            count *= length
        if count < 0 or count * kind.itemsize > self.size:
            raise InvalidArgument(f"{count} items of {kind.itemsize} bytes do not fit a buffer of {self.size}")
        return np.frombuffer(self.memory, dtype=kind, count=count).reshape(dimensions)

    def tensor(self, dtype: Any = None, shape: int | tuple[int, ...] | None = None) -> Any:
        """Return a torch tensor over the bytes; no copy. `dtype` is torch's; uint8 by default."""
        import torch

        dtype = torch.uint8 if dtype is None else dtype
        flat = torch.frombuffer(self.memory, dtype=dtype, count=self.size // torch.empty((), dtype=dtype).element_size())
        if shape is None:
            return flat
        dimensions = (shape,) if isinstance(shape, int) else tuple(shape)
        count = 1
        for length in dimensions:
            count *= length
        return flat[:count].view(dimensions)

    def __dlpack__(self, **options: Any) -> Any:
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # kDLCPU

    def handle(self) -> bytes:
        """Return bytes that `fabric.from_handle` turns into this buffer in any process, for as long as it is not freed."""
        r = self._record
        packed: bytes = msgpack.packb([HANDLE_VERSION, r.instance, r.index, r.generation, r.region, r.offset, r.bytes, self.name])
        return packed

    def free(self) -> None:
        """Give the memory back. Handles to it become stale.

        Raises:
            StaleHandle: it was freed already.
        """
        check(lib.fbx_free(self.fabric._live(), self._record))
        self._view = self._raw = self._kept = None

    def __enter__(self) -> Buffer:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.free()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, (self.fabric, self.handle()))


def _reopen(fabric: Fabric, handle: bytes) -> Buffer:
    return fabric.from_handle(handle)
