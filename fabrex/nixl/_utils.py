# SPDX-License-Identifier: Apache-2.0
"""NIXL's helpers for tests: plain memory by address."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]


def malloc_passthru(size: int) -> int:
    """Return the address of `size` bytes."""
    address = _libc.malloc(size)
    if not address:
        raise MemoryError(f"{size} bytes")
    return int(address)


def free_passthru(address: int) -> None:
    """Give them back."""
    _libc.free(address)


def ba_buf(address: int, size: int) -> None:
    """Fill memory with 0xba."""
    ctypes.memset(address, 0xBA, size)


def verify_transfer(first: int, second: int, size: int) -> None:
    """Raise if two ranges of memory differ."""
    if ctypes.string_at(first, size) != ctypes.string_at(second, size):
        raise RuntimeError(f"{size} bytes at {first:#x} and {second:#x} differ")
