# SPDX-License-Identifier: Apache-2.0
"""A node's NTB device: its memory windows, with the names of the Linux NTB API in the docstrings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._handle import check, ffi, lib
from .errors import InvalidArgument

if TYPE_CHECKING:
    from .node import Node

BUS = 1 << 63
"""Marks an address as one on the calling node's own bus."""

_PERMISSIONS = {"": 0, "none": 0, "r": 1, "w": 2, "rw": 3}
_MAPPINGS = {"uc": 0, "uncached": 0, "wc": 1, "write-combining": 1}


class Window:
    """One memory window of a node (ntb_mw)."""

    def __init__(self, node: Node, index: int) -> None:
        self.node = node
        self.index = index

    def _info(self) -> Any:
        out = ffi.new("struct fbx_window_info *")
        check(lib.fbx_mw_info(self.node.fabric._live(), self.node.index, self.index, out), self.node)
        return out

    def __repr__(self) -> str:
        info = self._info()
        where = f"{self.peer} {info.translation:#x}+{info.bytes:#x}" if info.programmed else "not programmed"
        return f"<Window {self.index} of {self.node.name}: {where}>"

    @property
    def programmed(self) -> bool:
        """Whether it leads anywhere."""
        return bool(self._info().programmed)

    @property
    def lut(self) -> bool:
        """Whether it is an entry of the look-up table: small, of one size."""
        return bool(self._info().lut)

    @property
    def peer(self) -> str | None:
        """The node that it shows, or None."""
        info = self._info()
        return self.node.fabric._node_name(info.peer) if info.programmed else None

    @property
    def translation(self) -> int:
        """Bus address at the peer of the window's first byte."""
        return int(self._info().translation)

    @property
    def size(self) -> int:
        """Bytes that it shows; 0 if it is not programmed."""
        return int(self._info().bytes)

    @property
    def max_size(self) -> int:
        """Most bytes that the device lets it show."""
        return int(self._info().max_bytes)

    @property
    def address_align(self) -> int:
        """Alignment of a translation, in bytes (ntb_mw_get_align)."""
        return int(self._info().address_align)

    @property
    def size_align(self) -> int:
        """Alignment of a size, in bytes (ntb_mw_get_align)."""
        return int(self._info().size_align)

    @property
    def address(self) -> int:
        """Address of its first byte on this node's own bus, for load, store, read and write of this node."""
        return int(self._info().bus) | BUS

    def set_translation(self, peer: str, address: int, size: int, *, perm: str = "rw", mapping: str = "wc") -> None:
        """Show `size` bytes from bus address `address` of `peer` (ntb_peer_mw_set_trans).

        Args:
            perm: "r", "w", "rw" or "none".
            mapping: "wc" (write-combining) or "uc" (uncached).
        Raises:
            WindowError: the device's alignment or size forbids it; nothing has changed.
            AddressError: there is no memory on the peer's bus; nothing has changed.
            Busy: a process is stopped in the middle of an operation through it.
        See: fbx_mw_set_trans().
        """
        if perm not in _PERMISSIONS or mapping not in _MAPPINGS:
            raise InvalidArgument(f"perm is one of {', '.join(map(repr, _PERMISSIONS))}; mapping of {', '.join(_MAPPINGS)}")
        fabric = self.node.fabric
        if not 0 <= address < 1 << 63 or not 0 <= size < 1 << 63:
            raise InvalidArgument("addresses and sizes are not negative and have 63 bits")
        code = lib.fbx_mw_set_trans(
            fabric._live(),
            self.node.index,
            self.index,
            fabric._node_index(peer),
            address,
            size,
            _PERMISSIONS[perm],
            _MAPPINGS[mapping],
        )
        check(code, self.node)

    def clear_translation(self) -> None:
        """Let it lead nowhere (ntb_peer_mw_clear_trans). After this nothing lands through it any more."""
        check(lib.fbx_mw_clear_trans(self.node.fabric._live(), self.node.index, self.index), self.node)


class Windows:
    """The windows of a node, by index: direct ones first, then those of the look-up table."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def __len__(self) -> int:
        return check(lib.fbx_mw_count(self._node.fabric._live(), self._node.index), self._node)

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._node.name} has {len(self)} windows, no window {index}")
        return Window(self._node, index)

    def __iter__(self) -> Iterator[Window]:
        return (self[i] for i in range(len(self)))


class Ntb:
    """The NTB device of one node."""

    def __init__(self, node: Node) -> None:
        self.windows = Windows(node)
