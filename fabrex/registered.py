# SPDX-License-Identifier: Apache-2.0
"""Registered memory: bytes that a program already has, with a global address."""

from __future__ import annotations

import contextlib
import operator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._handle import check, ffi, lib
from .errors import ClosedHandle, InvalidArgument

if TYPE_CHECKING:
    from .node import Node

__all__ = ["Registered"]


class Registered:
    """Memory of this process that peers reach by address.

    Made by `Node.register` and `Node.register_address`. Peers load, store and copy there as they do in a region, at the
    cost of the node's first tier; nobody can map it. It ends with `close()`, with its node's handle, or with its process.

    Attributes:
        gva: global address of the first byte; the low 12 bits are those of the memory itself, so alignments are kept.
        size: bytes.
        node: name of the node that has it.
        read_only: peers may only read.
    """

    def __init__(self, node: Node, pointer: Any, size: int, flags: int, keepalive: Any) -> None:
        self._fabric = node.fabric
        self._record = ffi.new("struct fbx_registration *")
        self._keepalive: Any = None
        self.closed = True
        check(lib.fbx_register(node._pointer(), pointer, size, flags, self._record), node)
        self.closed = False
        self._keepalive = keepalive
        self.gva: int = int(self._record.gva)
        self.size: int = size
        self.node: str = node.name
        self.read_only: bool = bool(flags & lib.FBX_REGISTER_READ_ONLY)

    def __repr__(self) -> str:
        return f"<Registered {self.size} bytes at {self.gva:#x} ({self.node}){', closed' if self.closed else ''}>"

    def __len__(self) -> int:
        return self.size

    def close(self) -> None:
        """Take the address back. When this has returned nobody touches the memory any more. Idempotent.

        What is on its way there is lost and counted, as on a link that went down; DMA under way ends with AddressError.

        Raises:
            Busy: a process that is stopped may still touch it; the memory must stay until another close() returns.
        """
        if self.closed:
            return
        with contextlib.suppress(ClosedHandle):  # a child of fork, or a fabric that is gone: nobody reaches it there
            check(lib.fbx_deregister(self._fabric._handle.pointer, self._record))
        self.closed = True
        self._keepalive = None

    def __enter__(self) -> Registered:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True) and lib is not None:
            try:
                self.close()
            except Exception:
                _LEAKED.append(self._keepalive)  # somebody may still touch it

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("registered memory belongs to its process; send `gva` and `size`, which mean the same everywhere")


_LEAKED: list[Any] = []


def register(node: Node, data: Any, *, read_only: bool | None = None, service: bool = False) -> Registered:
    """Register the memory of `data`; see `Node.register`."""
    flags = lib.FBX_REGISTER_SERVICE if service else 0
    if hasattr(data, "data_ptr") and hasattr(data, "untyped_storage"):
        return _register_tensor(node, data, flags, bool(read_only))
    if hasattr(data, "__cuda_array_interface__"):
        raise InvalidArgument("the memory is a device's; only memory of this process can be registered")
    try:
        view = memoryview(data)
    except TypeError:
        raise InvalidArgument(
            f"{type(data).__name__} has no memory to register",
            hint="give a NumPy array, a torch tensor, or anything with the buffer protocol",
        ) from None
    if not view.c_contiguous:
        raise InvalidArgument("the array is not contiguous; register a contiguous one, or its base, and add the offset")
    if view.nbytes == 0:
        raise InvalidArgument("there are no bytes to register")
    if view.readonly:
        if read_only is False:
            raise InvalidArgument("the memory is read-only; register it with read_only=True")
        read_only = True
    # The export is kept: what has exports does not move, shrink or go.
    pointer = ffi.from_buffer("char[]", view)
    flags |= lib.FBX_REGISTER_PINNED | (lib.FBX_REGISTER_READ_ONLY if read_only else 0)
    return Registered(node, ffi.cast("void *", pointer), view.nbytes, flags, (view, pointer))


def _register_tensor(node: Node, tensor: Any, flags: int, read_only: bool) -> Registered:
    if tensor.device.type != "cpu":
        raise InvalidArgument(f"the tensor is on {tensor.device}; only memory of this process can be registered")
    if not tensor.is_contiguous():
        raise InvalidArgument("the tensor is not contiguous; register a contiguous one, or its base, and add the offset")
    size = tensor.numel() * tensor.element_size()
    if not size:
        raise InvalidArgument("there are no bytes to register")
    flags |= lib.FBX_REGISTER_READ_ONLY if read_only else 0
    # A storage can be resized while it is referenced, so it is not taken as pinned.
    return Registered(node, ffi.cast("void *", tensor.data_ptr()), size, flags, tensor)


def register_address(
    node: Node, pointer: int, nbytes: int, *, keepalive: Any = None, read_only: bool = False, service: bool = False
) -> Registered:
    """Register memory by its address; see `Node.register_address`."""
    pointer, nbytes = operator.index(pointer), operator.index(nbytes)
    if pointer <= 0 or pointer >> 64 or nbytes <= 0 or pointer + nbytes >> 64:
        raise InvalidArgument(f"{nbytes} bytes at {pointer:#x} are no memory")
    flags = (lib.FBX_REGISTER_SERVICE if service else 0) | (lib.FBX_REGISTER_READ_ONLY if read_only else 0)
    return Registered(node, ffi.cast("void *", pointer), nbytes, flags, keepalive)
