# SPDX-License-Identifier: Apache-2.0
"""The compiled core, its handles and its errors; the one place that imports it.

A handle owns memory of the core and frees it when the last Python object that needs it is gone: closing only makes it
unusable. So a view, a node or a buffer can never outlive what it points to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from . import _hot
from ._core import ffi, lib
from .errors import BY_CODE, FabricError, InvalidArgument, SystemRefused

__all__ = [
    "SLICE_NS",
    "FabricHandle",
    "NodeHandle",
    "Requester",
    "Scheduler",
    "check",
    "encoded",
    "ffi",
    "lib",
    "raise_code",
    "text",
]

SLICE_NS = 20_000_000
"""Waits come back to Python at least this often, so that Ctrl-C works everywhere."""

_OPS = (
    "load",
    "store",
    "read",
    "write",
    "fetch_add",
    "swap",
    "compare_swap",
    "flush",
    "wait",
    "dma_read",
    "dma_write",
    "operation",
)


def text(value: Any) -> str:
    """Return the str of a NUL-terminated C string."""
    raw: bytes = ffi.string(value)
    return raw.decode("utf-8", "replace")


def encoded(name: str) -> bytes:
    """Return a name's bytes for the core; raises InvalidArgument where a C string would end early."""
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    if "\0" in name:
        raise InvalidArgument(f"{name!r} is no name: it contains a NUL")
    return name.encode("utf-8", "surrogateescape")


def raise_code(code: int, node: Any = None) -> None:
    """Raise the exception of a core's code, with what the core says about this thread's last failure."""
    name = lib.fbx_error_name(code)
    if name == ffi.NULL:
        raise FabricError(f"the core returned {code}, which is no code of its")
    kind = BY_CODE[text(name)]
    last = lib.fbx_last_error()
    message = text(last.text) if last.code == code else ""
    if not message and code == lib.FBX_E_CLOSED:
        message = "the handle is closed"
    error = kind(
        message,
        op=_OPS[last.op] if last.code == code and 0 <= last.op < len(_OPS) else None,
        node=getattr(node, "name", None),
        gva=last.gva if last.code == code and last.gva else None,
        hint=text(lib.fbx_error_hint(code)),
        injected=bool(last.injected) if last.code == code else False,
    )
    error.code = text(name)
    if isinstance(error, (SystemRefused, OSError)) and last.code == code and last.system_errno:
        error.errno = last.system_errno
    raise error


def check(code: int, node: Any = None) -> int:
    """Return `code` if it is no error; raise its exception otherwise."""
    if code < 0:
        raise_code(code, node)
    return code


Requester = _hot.Requester
Scheduler = _hot.Scheduler
_hot.bind(
    int(ffi.cast("uintptr_t", lib.fbx_hot_table())), int(ffi.cast("uintptr_t", lib.fbx_sim_table())), raise_code
)


class FabricHandle:
    """Owns one opened fabric of the core.

    Args:
        opener: called with a `fbx_fabric **`; returns the core's code.
    """

    def __init__(self, opener: Callable[[Any], int]) -> None:
        out = ffi.new("fbx_fabric **")
        self.pointer: Any = ffi.NULL
        check(opener(out))
        self.pointer = out[0]
        self.closed = False
        self.pid = os.getpid()

    def live(self) -> Any:
        """Return the pointer; raises ClosedHandle after close or fork."""
        if self.closed or self.pid != os.getpid():
            why = "the fabric's handle is closed" if self.closed else "the fabric was opened before fork"
            raise BY_CODE["CLOSED"](why, hint="open it anew in this process")
        return self.pointer

    def close(self) -> None:
        """End the session; memory stays mapped for those who still look at it. Idempotent."""
        if not self.closed:
            self.closed = True
            if self.pointer != ffi.NULL:
                lib.fbx_fabric_close(self.pointer)

    def __del__(self) -> None:
        if self.pointer != ffi.NULL and lib is not None:
            lib.fbx_fabric_free(self.pointer)
            self.pointer = ffi.NULL


class NodeHandle:
    """Owns one attached node of the core, and keeps its fabric."""

    def __init__(self, fabric: FabricHandle, name: str, kind: int) -> None:
        self.fabric = fabric
        self.pointer: Any = ffi.NULL
        out = ffi.new("fbx_node **")
        check(lib.fbx_node_attach(fabric.live(), encoded(name), kind, out))
        self.pointer = out[0]
        self.closed = False
        self.pid = os.getpid()

    @property
    def address(self) -> int:
        """The pointer as an int, for the _hot extension."""
        return int(ffi.cast("uintptr_t", self.pointer))

    def close(self) -> None:
        """Detach. Idempotent."""
        if not self.closed:
            self.closed = True
            if not self.fabric.closed:
                lib.fbx_node_detach(self.pointer)

    def __del__(self) -> None:
        if self.pointer != ffi.NULL and lib is not None:
            lib.fbx_node_free(self.pointer)
            self.pointer = ffi.NULL
